"""report.html: a training run as one page."""

from .page import findings, write_report

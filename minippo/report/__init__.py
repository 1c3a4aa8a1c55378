"""report.html: a training run as one page."""

from .findings import findings
from .page import write_report

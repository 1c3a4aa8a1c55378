"""Figures of chapter 6."""

import torch

from ..figures import COLORS, Axes, legend, line, rect, svg, text

LOW, WIDTH_OF_BIN, BINS = -2.5, 0.25, 20


def _counts(scores):
    """How many scores lie near each bin's middle: each is shared between its two nearest bins, so that no count jumps."""
    place = (scores - LOW) / WIDTH_OF_BIN - 0.5
    middles = torch.arange(BINS)
    return (1 - (place[:, None] - middles).abs()).clamp_min(0).sum(0)


def histogram(chapter: dict) -> str:
    """The reward model's scores of 400 new reviews, the good and the bad ones apart, and the score of the cheat."""
    good, bad = _counts(chapter["good"]), _counts(chapter["bad"])
    axes = Axes(40, 46, 366, 170, (LOW, LOW + BINS * WIDTH_OF_BIN), (0, 50))
    parts = axes.frame([-2, -1, 0, 1, 2], [0, 10, 20, 30, 40, 50], "score", "reviews")
    parts += legend(100, 24, [("good reviews", COLORS["scores"]), ("bad reviews", COLORS["ref_logprobs"])])
    wide = 366 / BINS
    for counts, color in ((bad, COLORS["ref_logprobs"]), (good, COLORS["scores"])):
        for i, count in enumerate(counts.tolist()):
            parts.append(rect(41 + i * wide, axes.y(count), wide - 2, axes.y(0) - axes.y(count), color, radius=1, opacity=0.6))
    x = axes.x(chapter["cheated"])
    parts += [line([(x, 62), (x, axes.y(0))], COLORS["kl"], 1.5, dash=True), text(400, 56, "“never wonderful” six times", 12, COLORS["kl"], "end")]
    return svg(254, parts, "Histogram: good and bad reviews make two hills that overlap; six words lie at the right end.")

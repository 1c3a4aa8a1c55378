"""Figures of chapter 2."""

import math

from ..figures import COLORS, INK, MUTED, Axes, legend, line, rect, svg, text

BATCH, WIDE = 16, 0.125         # words in a batch, width of a bar


def _estimates(p, scores, baseline):
    """The exact distribution of what a batch says to the third logit: (estimate, probability) for every count of words."""
    said = [(float(scores[w]) - baseline) * ((w == 2) - p[2]) for w in range(3)]
    for a in range(BATCH + 1):
        for b in range(BATCH + 1 - a):
            counts = (a, b, BATCH - a - b)
            ways = math.factorial(BATCH) // math.prod(math.factorial(k) for k in counts)
            yield sum(k * x for k, x in zip(counts, said)) / BATCH, ways * math.prod(q**k for q, k in zip(p, counts))


def baseline(chapter: dict) -> str:
    """How gradient estimates from 16 words scatter: scores 10 to 12 and 0 to 2 without a baseline, and both with the mean."""
    p, truth, parts = chapter["p"].tolist(), float(chapter["exact"][2]), []
    low, high = truth - 2, truth + 2
    for top, name, shift, subtracted, tensor in [(46, "scores 10, 11, 12, no baseline", 10, 0.0, "scores"),
                                                 (164, "scores 0, 1, 2, no baseline", 0, 0.0, "scores"),
                                                 (282, "either, the mean score as baseline", 0, 0.75, "advantages")]:
        axes = Axes(44, top, 362, 72, (low, high), (0, 0.5))
        parts += axes.frame([-1, 0, 1, 2], [0, 0.25, 0.5]) + [text(44, top - 12, name, 13.5, INK, bold=True)]
        bars = [0.0] * round((high - low) / WIDE)
        for estimate, probability in _estimates(p, [shift, shift + 1, shift + 2], subtracted):
            if low <= estimate < high:
                bars[math.floor((estimate - low) / WIDE)] += probability
        for i, height in enumerate(bars):
            left = low + i * WIDE
            parts.append(rect(axes.x(left) + 0.5, axes.y(height), axes.x(left + WIDE) - axes.x(left) - 1, axes.y(0) - axes.y(height),
                              COLORS[tensor], opacity=0.85))
        if shift:
            parts.append(text(406, top - 12, "each clump: one count of c", 12, MUTED, "end"))
        parts.append(line([(axes.x(truth), top - 4), (axes.x(truth), top + 72)], INK, 1.5, dash=True))
    parts += [text(406, 392, "gradient at the logit of c, from 16 words", 12, MUTED, "end"), text(44, 392, "dashed: exact", 12, MUTED)]
    return svg(404, parts, "Histograms of gradient estimates around the same mean: the larger the scores the wider, narrow with a baseline.")


def distance(chapter: dict) -> str:
    """Total variation to pi* at each step on a logarithmic scale, with and without the baseline."""
    axes = Axes(58, 44, 348, 180, (0, 200), (-4, 0))
    parts = axes.frame(x_ticks=[0, 50, 100, 150, 200], x_label="step")
    for power, name in [(-4, "0.0001"), (-3, "0.001"), (-2, "0.01"), (-1, "0.1"), (0, "1")]:
        parts += [line([(58, axes.y(power)), (406, axes.y(power))], width=1), text(52, axes.y(power) + 4, name, 11, MUTED, "end")]
    for curve, tensor in [(chapter["noisy"], "scores"), (chapter["far"], "advantages")]:
        parts.append(axes.curve(range(len(curve)), [max(-4.0, math.log10(x)) for x in curve], COLORS[tensor], 1.6))
    parts += legend(58, 26, [("no baseline", COLORS["scores"]), ("baseline", COLORS["advantages"])])
    parts.append(text(406, 26, "total variation to pi*", 12, MUTED, "end"))
    return svg(266, parts, "Curves: with the baseline the distance to pi* falls to nothing; without it noise keeps it at a hundredth.")

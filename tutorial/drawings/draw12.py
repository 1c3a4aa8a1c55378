"""Figures of chapter 12."""

from ..figures import COLORS, INK, MUTED, Axes, line, svg, text

PANELS = [      # run, its metric, the metric's colour, the axis, its ticks
    ("hacking", "objective/kl", "kl", (0, 30), [0, 10, 20, 30]),
    ("collapse", "samples/distinct", "tokens", (0, 0.6), [0, 0.2, 0.4, 0.6]),
    ("large steps", "ppo/policy/approxkl", "ratio", (0, 6), [0, 2, 4, 6]),
    ("wrong sampler", "objective/kl", "kl", (-20, 5), [-20, -10, 0]),
    ("shifted", "objective/entropy", "logprobs", (0, 45), [0, 15, 30, 45]),
    ("dropout", "first ratio off by", "ratio", (0, 6), [0, 2, 4, 6]),
    ("early whitening", "ppo/val/error", "values", (0, 1.2), [0, 0.4, 0.8, 1.2]),
]


def failures(chapter: dict) -> str:
    """For each fault its telling metric over the steps, with the healthy run in grey."""
    parts = []
    for i, (name, metric, tensor, y_range, ticks) in enumerate(PANELS):
        left, top = 42 + 204 * (i % 2), 54 + 138 * (i // 2)
        history, healthy = chapter["runs"][name], chapter["runs"]["healthy"]
        steps = max(16, len(history))
        axes = Axes(left, top, 158, 72, (1, steps), y_range)
        parts += [text(left - 26, top - 28, name, 13, INK, bold=True), text(left - 26, top - 12, metric, 12, COLORS[tensor], mono=True)]
        parts += axes.frame(x_ticks=range(1, steps + 1, 3 if steps < 20 else 9), y_ticks=ticks)
        for one, color, width in ((healthy, MUTED, 1.5), (history, COLORS[tensor], 2.2)):
            ys = [min(max(step[metric], y_range[0]), y_range[1]) for step in one]
            parts.append(axes.curve(range(1, len(ys) + 1), ys, color, width))
    left, top = 246, 54 + 138 * 3
    parts += [line([(left - 10, top + 12), (left + 14, top + 12)], COLORS["kl"], 2.2), text(left + 22, top + 16, "with the fault", 12),
              line([(left - 10, top + 34), (left + 14, top + 34)], MUTED, 1.5), text(left + 22, top + 38, "healthy run", 12),
              text(left - 10, top + 60, "across: steps", 12, MUTED)]
    return svg(top + 104, parts, "Small multiples: seven faults, each with the metric that shows it, beside the healthy run.")

"""Figures of chapter 12."""

from ..figures import COLORS, INK, MUTED, Axes, dot, line, svg, text

PANELS = [      # run, its metric, the axis, its ticks
    ("hacking", "objective/kl", (0, 30), [0, 10, 20, 30]),
    ("collapse", "samples/distinct", (0, 0.6), [0, 0.2, 0.4, 0.6]),
    ("large steps", "ppo/policy/approxkl", (0, 8), [0, 2, 4, 6, 8]),
    ("wrong sampler", "objective/kl", (-20, 5), [-20, -10, 0]),
    ("shifted", "objective/entropy", (0, 45), [0, 15, 30, 45]),
    ("dropout", "first ratio off by", (0, 8), [0, 2, 4, 6, 8]),
    ("early whitening", "ppo/val/error", (0, 1.2), [0, 0.4, 0.8, 1.2]),
]
FAULT = COLORS["kl"]


def failures(chapter: dict) -> str:
    """For each fault its telling metric over the steps in red, with the healthy run in grey."""
    parts = []
    for i, (name, metric, y_range, ticks) in enumerate(PANELS):
        left, top = 42 + 204 * (i % 2), 54 + 138 * (i // 2)
        history, healthy = chapter["runs"][name], chapter["runs"]["healthy"]
        steps = max(16, len(history))
        axes = Axes(left, top, 158, 72, (1, steps), y_range)
        parts += [text(left - 26, top - 28, name, 13, INK, bold=True), text(left - 26, top - 12, metric, 12, MUTED, mono=True)]
        parts += axes.frame(x_ticks=range(1, steps + 1, 3 if steps < 20 else 9), y_ticks=ticks)
        curves = [[min(max(step[metric], y_range[0]), y_range[1]) for step in run] for run in (healthy, history)]
        parts.append(axes.curve(range(1, 17), curves[0], MUTED, 1.5))
        if name == "large steps":               # the first step alone: what follows depends on the machine's last bits
            parts += [dot(axes.x(1), axes.y(curves[1][0]), FAULT, 4), text(axes.x(1) + 10, axes.y(curves[1][0]) + 4, "step 1", 12, FAULT)]
        else:
            parts.append(axes.curve(range(1, steps + 1), curves[1], FAULT, 2.2))
    left, top = 246, 54 + 138 * 3
    parts += [line([(left - 10, top + 12), (left + 14, top + 12)], FAULT, 2.2), text(left + 22, top + 16, "with the fault", 12),
              line([(left - 10, top + 34), (left + 14, top + 34)], MUTED, 1.5), text(left + 22, top + 38, "healthy run", 12),
              text(left - 10, top + 60, "across: steps", 12, MUTED)]
    return svg(top + 104, parts, "Small multiples: seven faults, each with the metric that shows it, beside the healthy run.")

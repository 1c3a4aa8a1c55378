"""Figures of chapter 10."""

import math

from ..figures import COLORS, INK, MUTED, Axes, dot, line, svg, text


def curves(chapter: dict) -> str:
    """Score and KL of two runs over the updates: with kl_coef 0.1 and without a penalty."""
    parts = [line([(44, 22), (64, 22)], MUTED, 2), text(70, 26, "kl_coef 0.1", 12),
             line([(170, 22), (190, 22)], MUTED, 2, dash=True), text(196, 26, "kl_coef 0", 12)]
    panels = [("mean score", "ppo/mean_scores", "scores", (-0.25, 1), [0, 0.5, 1]), ("KL, nats a response", "objective/kl", "kl", (0, 8), [0, 2, 4, 6, 8])]
    for i, (name, metric, tensor, y_range, ticks) in enumerate(panels):
        axes = Axes(44, 62 + 160 * i, 362, 104, (1, 12), y_range)
        parts += axes.frame(x_ticks=[1, 3, 6, 9, 12], y_ticks=ticks, x_label="update" if i else "")
        parts.append(text(44, 52 + 160 * i, name, 13, COLORS[tensor], bold=True))
        for history, dash in ((chapter["metrics"], False), (chapter["unpenalised"], True)):
            parts.append(axes.curve(range(1, 13), [update[metric] for update in history], COLORS[tensor], 2, dash))
    return svg(366, parts, "Curves: both runs reach the full score; without a penalty the KL goes on rising.")


def _best(kl_coef: float) -> tuple[float, float]:
    """KL and score of pi* where the reference scores -1, 0, 1 with probabilities 1/4, 1/2, 1/4."""
    ref, scores = (0.25, 0.5, 0.25), (-1.0, 0.0, 1.0)
    weights = [p * math.exp(score / kl_coef) for p, score in zip(ref, scores)]
    probs = [weight / sum(weights) for weight in weights]
    return sum(p * math.log(p / r) for p, r in zip(probs, ref)), sum(p * score for p, score in zip(probs, scores))


def frontier(chapter: dict) -> str:
    """Score over KL: the means of the runs as points, the best possible as a dashed curve; what lies beyond 2 nats as an arrow."""
    axes = Axes(44, 40, 352, 220, (0, 2), (0, 1.1))
    best = [(0.0, 0.0)] + [_best(10 ** (1.3 - 0.1 * i)) for i in range(26)] + [(2, 1.0)]
    parts = axes.frame(x_ticks=[0, 0.5, 1, 1.5, 2], y_ticks=[0, 0.25, 0.5, 0.75, 1], x_label="KL, nats a response", y_label="mean score")
    parts.append(axes.curve([kl for kl, _ in best], [score for _, score in best], COLORS["optimum"], 1.4, dash=True))
    for kl_coef, score, kl in chapter["frontier"]:
        if kl > 2:                              # how far is chance: it differs from seed to seed
            y = axes.y(round(20 * score) / 20)
            parts += [line([(axes.x(1.85), y), (axes.x(2), y)], COLORS["scores"], 2, arrow=True), text(axes.x(1.99), y + 18, f"{kl_coef:g}", 12, INK, "end")]
        else:
            x, y = axes.x(kl), axes.y(score)
            parts += [dot(x, y, COLORS["scores"], 5), text(x + 2, y + 20, f"{kl_coef:g}", 12, INK)]
    parts += [text(396, 152, "points: runs, with kl_coef", 12, COLORS["scores"], "end"), text(396, 170, "arrow: beyond 2 nats", 12, COLORS["scores"], "end"),
              text(396, 188, "dashed: the best possible", 12, MUTED, "end")]
    return svg(304, parts, "The frontier: a smaller kl_coef buys more score for more KL; without a penalty KL grows for nothing.")

"""Figures of chapter 7."""

from ..figures import COLORS, INK, MUTED, Axes, legend, line, rect, svg, text


def bars(chapter: dict) -> str:
    """What each token of the first response earned: its KL penalty, and the score on top of the last."""
    penalty, rewards = chapter["penalty"][0], chapter["rewards"][0]
    names = [chapter["words"][token] for token in chapter["responses"][0]]
    axes = Axes(62, 40, 344, 190, (0, len(names)), (-0.4, 1.2))
    parts = legend(62, 24, [("score", COLORS["scores"]), ("KL penalty", COLORS["kl"])])
    parts += axes.frame(y_ticks=[-0.4, 0, 0.4, 0.8, 1.2])
    parts.append(line([(62, axes.y(0)), (406, axes.y(0))], MUTED, 1))
    for i, (name, paid, reward) in enumerate(zip(names, penalty.tolist(), rewards.tolist())):
        left, score = axes.x(i) + 10, reward - paid
        parts.append(rect(left, axes.y(max(paid, 0)), 36, abs(axes.y(paid) - axes.y(0)), COLORS["kl"]))
        if score:
            parts.append(rect(left, axes.y(score), 36, axes.y(0) - axes.y(score), COLORS["scores"]))
        parts += [text(left + 18, 250, name, 13, INK, "middle"),
                  text(left + 18, 268, f"{reward:+.2f}".replace("-", "−"), 12, COLORS["rewards"], "middle")]
    parts.append(text(58, 268, "reward", 12, COLORS["rewards"], "end"))
    return svg(282, parts, "Bars: small KL penalties at six tokens, one of them positive, and the score at the last.")

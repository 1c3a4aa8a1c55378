"""Figures of chapter 9."""

from ..figures import COLORS, INK, MUTED, Axes, dot, line, svg, text

LOW, HIGH, CLIP = 0.4, 1.8, 0.2


def clip(chapter: dict) -> str:
    """The clipped objective against the ratio for both signs of the advantage, with the tokens of the last epoch."""
    ratios, positive, parts = chapter["ratio"], chapter["advantages"] > 0, []
    panels = [("advantage above 0: it went well", 48, positive, (0.3, 1.4), [0.5, 1], lambda r: min(r, 1 + CLIP)),
              ("advantage below 0: it went badly", 254, ~positive, (-1.9, -0.6), [-1.5, -1], lambda r: -max(r, 1 - CLIP))]
    for title, top, tokens, heights, y_ticks, objective in panels:
        axes = Axes(44, top, 362, 140, (LOW, HIGH), heights)
        parts += [text(14, top - 20, title, 13.5, INK, bold=True)]
        parts += axes.frame([0.4, 0.8, 1, 1.2, 1.6], y_ticks)
        parts += [line([(axes.x(r), top), (axes.x(r), top + 140)], MUTED, 1, dash=True) for r in (1 - CLIP, 1 + CLIP)]
        corners = [LOW, 1 - CLIP, 1 + CLIP, HIGH]
        parts.append(axes.curve(corners, [objective(r) for r in corners], COLORS["ratio"]))
        for r in sorted(ratios[chapter["mask"] & tokens].tolist()):
            pushes = abs(objective(r)) == r                     # else it lies on the flat part
            parts.append(dot(axes.x(r), axes.y(objective(r)), COLORS["logprobs" if pushes else "kl"], 3.5, 0.4))
    parts += [text(406, 425, "ratio", 12, MUTED, "end"), dot(20, 441, COLORS["logprobs"], 4), text(29, 445, "pushes", 12),
              dot(92, 441, COLORS["kl"], 4), text(101, 445, "clipped: no gradient", 12)]
    return svg(458, parts, "Clipped objective: flat above 1.2 for positive advantages and below 0.8 for negative ones.")

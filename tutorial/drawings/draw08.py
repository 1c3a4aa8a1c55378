"""Figures of chapter 8."""

from minippo import ppo

from ..figures import COLORS, INK, MUTED, heatmap, svg, text

GAME = 0b001010     # the row of the 64 games with the coins + + - + - +


def dial(chapter: dict) -> str:
    """One game with the half-believing critic: values, rewards, and the advantages for four positions of the dial."""
    coins, known, everything = chapter["coins"], chapter["known"], chapter["everything"]
    values, score = 0.5 * known, coins.sum(1)
    rewards = coins.new_zeros(coins.shape)
    rewards[:, -1] = score
    names, width = [f"{int(c):+d}".replace("-", "−") for c in coins[GAME]], 53
    parts = [text(88, 26, "coin", 12, MUTED, "end")]
    parts += heatmap(96, 34, [values[GAME]], ["value"], names, COLORS["values"], 3, (width, 30), 1)
    parts += heatmap(96, 66, [rewards[GAME]], ["reward"], [""] * 6, COLORS["rewards"], 3, (width, 30), 1)
    parts += [text(14, 122, "advantage", 13, INK, bold=True)]
    rows = [ppo.compute_advantages(values, rewards, everything, 1.0, lam)[0][GAME] for lam in (0.0, 0.5, 0.95, 1.0)]
    parts += heatmap(96, 132, rows, ["lam 0", "lam 0.5", "lam 0.95", "lam 1"], [""] * 6, COLORS["advantages"], 3, (width, 34))
    parts += [text(96, 290, "left: first token", 12, MUTED), text(96 + 6 * width, 290, "score arrives here", 12, MUTED, "end")]
    return svg(304, parts, "Heat map: at lam 0 most credit stays with the last token, at lam 1 it reaches the first.")

"""Figures of chapter 11."""

from ..figures import CARD, COLORS, INK, LINE, MUTED, Axes, dot, line, rect, svg, text

LOOKS = {"PPO": COLORS["values"], "REINFORCE": COLORS["rewards"], "RLOO": COLORS["advantages"], "GRPO": COLORS["logprobs"]}


def _frontier(chapter: dict, axes: Axes) -> str:
    """The best score at each KL, dashed."""
    low, high = axes.x_range
    kls = [low + (high - low) * i / 60 for i in range(61)]
    return axes.curve(kls, [chapter["best"](kl) if kl else chapter["measure"](chapter["ref_probs"])[0] for kl in kls], COLORS["optimum"], 1.4, dash=True)


def _mark(name: str, x: float, y: float) -> str:
    """One run; each method has a shape of its own."""
    color, r = LOOKS[name], 4.5
    if name == "PPO":
        return dot(x, y, color, 4, 0.8)
    corners = {"REINFORCE": [(-r, -r), (r, -r), (r, r), (-r, r)], "RLOO": [(0, -r - 1), (r + 1, r - 1), (-r - 1, r - 1)], "GRPO": [(-r, 0), (r, 0), (0, 0), (0, -r), (0, r)]}[name]
    points = [(x + dx, y + dy) for dx, dy in corners]
    return line(points if name == "GRPO" else [*points, points[0]], color, 1.8)


def comparison(chapter: dict) -> str:
    """Score over KL of all runs: openings alike, then unlike."""
    parts = []
    for x, name in zip((44, 112, 222, 296), LOOKS):
        parts += [_mark(name, x + 6, 22), text(x + 16, 26, name, 12)]
    panels = [("openings alike: kl_coef 1, 0.5, 0.3", chapter["alike"].values()), ("openings unlike: kl_coef 0.5", [chapter["unlike"]])]
    for i, (title, blocks) in enumerate(panels):
        axes = Axes(44, 66 + 224 * i, 352, 160, (0, 1.2), (0, 1))
        parts += axes.frame([0, 0.2, 0.4, 0.6, 0.8, 1, 1.2], [0, 0.25, 0.5, 0.75, 1], "KL, nats a response" if i else "", "")
        parts += [text(44, 56 + 224 * i, title, 13, INK, bold=True), _frontier(chapter, axes)]
        parts += [_mark(name, axes.x(kl), axes.y(score)) for runs in blocks for name in LOOKS for score, kl, _ in runs[name]]
    parts += [text(396, 210, "dashed: the best score at each KL", 12, MUTED, "end")]
    return svg(494, parts, "Score over KL: with openings alike all runs lie on the frontier; with unlike ones PPO and REINFORCE lie below it.")


comparison.within = 25      # pixels: one word sampled otherwise, and a run of 64 responses ends a little elsewhere


def dpo(chapter: dict) -> str:
    """The way of DPO through score and KL: plain with small steps, and anchored."""
    axes = Axes(44, 66, 352, 200, (0, 2), (0, 1))
    parts = axes.frame([0, 0.4, 0.8, 1.2, 1.6, 2], [0, 0.25, 0.5, 0.75, 1], "KL, nats a response", "score")
    parts += [line([(44, 22), (70, 22)], COLORS["kl"], 2), text(76, 26, "plain, half the rate", 12),
              line([(226, 22), (252, 22)], COLORS["returns"], 2), text(258, 26, "anchored; two seeds each", 12)]
    parts.append(_frontier(chapter, axes))
    for name, color in (("half the rate", COLORS["kl"]), ("anchored", COLORS["returns"])):
        for trace, _, _ in chapter["dpo"][name]:
            points = [chapter["measure"](probs) for probs in trace]
            parts.append(axes.curve([kl for _, kl in points], [score for score, _ in points], color, 1.6))
            parts += [dot(axes.x(kl), axes.y(score), color, 2) for score, kl in points[:-1]]
            parts.append(dot(axes.x(points[-1][1]), axes.y(points[-1][0]), color, 5))
    for runs in chapter["alike"].values():
        for name in LOOKS:
            score, kl, _ = chapter["means"](runs)[name]
            parts.append(_mark(name, axes.x(kl), axes.y(score)))
    parts += [text(396, 250, "marks: the four methods; dots: every four steps", 12, MUTED, "end")]
    return svg(314, parts, "DPO starts along the frontier and then leaves it to the right; anchored it stays on it.")


def map(chapter: dict) -> str:
    """From pretraining to the policy: by a reward model and RL, or by DPO."""
    def box(x, y, width, name, below, color):
        return [rect(x, y, width, 44, CARD, color, radius=6), text(x + width / 2, y + 19, name, 13, INK, "middle", bold=True),
                text(x + width / 2, y + 35, below, 11, MUTED, "middle")]

    parts = box(12, 94, 92, "pretraining", "all texts", LINE) + box(126, 94, 92, "SFT", "good answers", COLORS["tokens"])
    parts += box(126, 22, 132, "reward model, rule", "learns from the pairs", COLORS["scores"])
    parts += box(290, 22, 118, "RL", "PPO, RLOO, GRPO", COLORS["ratio"]) + box(290, 166, 118, "DPO", "the pairs alone", COLORS["kl"])
    parts += [line([(104, 116), (123, 116)], MUTED, 1.5, arrow=True), line([(172, 94), (172, 69)], MUTED, 1.5, arrow=True),
              line([(258, 44), (287, 44)], MUTED, 1.5, arrow=True), line([(218, 108), (320, 108), (320, 69)], MUTED, 1.5, arrow=True),
              line([(218, 124), (320, 124), (320, 163)], MUTED, 1.5, arrow=True),
              text(328, 94, "it samples", 11, MUTED), text(328, 146, "it does not", 11, MUTED)]
    return svg(226, parts, "A map: pretraining, SFT, then a reward model and RL, or DPO from the pairs alone.")

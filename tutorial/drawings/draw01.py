"""Figures of chapter 1."""

import torch

from ..figures import COLORS, INK, LINE, MUTED, Axes, legend, line, rect, svg, text

STAGES = [      # stage, what happens, its tensors with their shapes
    ("sample", "the policy answers", [("queries", "B × (Q,)", "tokens"), ("responses", "B × (R,)", "tokens")]),
    ("rollout", "score the tokens twice", [("logprobs", "(B, R)", "logprobs"), ("ref_logprobs", "(B, R)", "ref_logprobs"),
                                           ("values", "(B, R)", "values")]),
    ("score", "from outside", [("scores", "(B,)", "scores")]),
    ("KL reward", "score minus drift", [("rewards", "(B, R)", "rewards")]),
    ("advantages", "better than expected?", [("advantages", "(B, R)", "advantages"), ("returns", "(B, R)", "returns")]),
    ("update", "a clipped step, 4 epochs", [("ratio", "(b, R)", "ratio")]),
]


def loop(chapter: dict) -> str:
    """The six stages from top to bottom, each with the tensors that it makes."""
    parts, y = [], 16.0
    tops = []
    for stage, what, tensors in STAGES:
        height = max(42, 16 + 20 * len(tensors))
        color = COLORS[tensors[0][2]]
        parts += [rect(44, y, 362, height, "#ffffff", LINE, radius=7), rect(44, y, 5, height, color, radius=2),
                  text(60, y + 19, stage, 14, INK, bold=True), text(60, y + 35, what, 12, MUTED)]
        for i, (name, shape, tensor) in enumerate(tensors):
            row = y + height / 2 + 4 + 20 * (i - (len(tensors) - 1) / 2)
            parts += [text(328, row, name, 12.5, COLORS[tensor], "end", mono=True), text(396, row, shape, 12, MUTED, "end", mono=True)]
        tops.append((y, height))
        y += height + 14
    for (top, height), (below, _) in zip(tops, tops[1:]):
        parts.append(line([(225, top + height + 1), (225, below - 2)], MUTED, 1.5, arrow=True))
    first, last = tops[0][0] + 21, tops[-1][0] + 21
    parts += [line([(44, last), (24, last), (24, first), (42, first)], MUTED, 1.5, arrow=True),
              text(60, y + 8, "B responses, b in a minibatch, R the longest", 12, MUTED)]
    return svg(y + 22, parts, "The loop: sample, rollout, score, KL reward, advantages, update, with the shape of every tensor.")


def optimum(chapter: dict) -> str:
    """For every word its probability under the reference, after training, and under pi*."""
    ref, trained, best = chapter["ref"], chapter["trained"], chapter["optimum"]
    axes = Axes(44, 44, 362, 170, (0, len(ref)), (0, 0.5))
    parts = axes.frame(y_ticks=[0, 0.1, 0.2, 0.3, 0.4, 0.5])
    bars = [("reference", ref, COLORS["ref_logprobs"], "none"), ("trained", trained, COLORS["logprobs"], "none"),
            ("pi*", best, "#ffffff", COLORS["optimum"])]
    x = 44.0
    for name, _, fill, stroke in bars:
        parts += [rect(x, 17, 10, 10, fill, stroke), text(x + 15, 26, name, 12)]
        x += 40 + 7 * len(name)
    for i, word in enumerate(chapter["words"]):
        left, score = axes.x(i) + 6, float(chapter["scores"][i])
        for j, (_, p, fill, stroke) in enumerate(bars):
            parts.append(rect(left + 16 * j, axes.y(p[i]), 14, axes.y(0) - axes.y(p[i]), fill, stroke))
        parts += [text(left + 23, axes.y(0) + 18, word, 13, INK, "middle"),
                  text(left + 23, axes.y(0) + 35, f"{score:+g}" if score else "0", 12, COLORS["scores"], "middle")]
    parts.append(text(40, axes.y(0) + 35, "score", 12, COLORS["scores"], "end"))
    return svg(262, parts, "Bars: the trained policy has reached pi*, far from the reference.")


def learning(chapter: dict) -> str:
    """Mean score and KL of each step; dashed, their values under pi*."""
    best, ref, scores = chapter["optimum"], chapter["ref"], chapter["scores"]
    goals = {"scores": (best * scores).sum(), "kl": (best * (best / ref).log()).sum()}
    curves = dict(zip(("scores", "kl"), torch.tensor(chapter["history"]).T))
    axes = Axes(44, 40, 362, 150, (0, len(chapter["history"])), (-0.5, 1.5))
    parts = axes.frame(x_ticks=[0, 20, 40, 60], y_ticks=[-0.5, 0, 0.5, 1, 1.5], x_label="step")
    parts += legend(44, 24, [("mean score", COLORS["scores"]), ("KL to the reference", COLORS["kl"])])
    parts += [text(400, 24, "dashed: under pi*", 12, MUTED, "end")]
    for tensor, ys in curves.items():
        parts += [axes.curve(range(len(ys)), ys, COLORS[tensor]),
                  axes.curve([0, len(ys)], [goals[tensor]] * 2, COLORS[tensor], 1.2, dash=True)]
    return svg(230, parts, "Curves: score and KL rise together and settle at their values under pi*.")

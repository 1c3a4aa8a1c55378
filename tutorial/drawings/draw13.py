"""Figures of chapter 13."""

from ..figures import COLORS, INK, LINE, MUTED, Axes, dot, legend, rect, svg, text

LOOPS = [       # loop, its colour, and what happens in it, before the next loop and behind it: words, shapes, colour
    ("step", "tokens", [("sample, score", "B × (R,), (B,)", "tokens"), ("draw the epochs", "epochs × B rows", "tokens"),
                        ("rollout: logprobs, values", "(B, R)", "logprobs"), ("rollout: ref_logprobs", "(B, R)", "ref_logprobs"),
                        ("credit: advantages, returns", "(B, R)", "advantages")],
     [("controller: the next kl_coef", "1 number", "kl")]),
    ("epoch", "hidden", [("its order", "B rows", "hidden")], []),
    ("minibatch", "scores", [("n_tokens", "1 number", "scores"), ("zero_grad", "", "scores")], [("optimizer.step", "", "scores")]),
    ("micro-batch", "ratio", [("new logprobs, new values", "(b, R)", "logprobs"), ("ratio to the rollout's", "(b, R)", "ratio"),
                              ("sum of losses / n_tokens", "1 number", "ratio"), ("backward: gradients add up", "", "ratio")], []),
]


def loops(chapter: dict) -> str:
    """The four loops as boxes within each other."""
    parts, y = [], 14.0
    starts = []
    for depth, (name, color, before, _) in enumerate(LOOPS):
        starts.append(y)
        y += 24
        y += 20 * len(before) + 6
    ends = [0.0] * len(LOOPS)
    for depth in reversed(range(len(LOOPS))):
        after = LOOPS[depth][3]
        y += 20 * len(after) + (6 if after else 4)
        ends[depth] = y
    for depth, (name, color, before, after) in enumerate(LOOPS):
        left, right, top = 14 + 15 * depth, 406 - 9 * depth, starts[depth]
        parts += [rect(left, top, right - left, ends[depth] - top, "#ffffff", LINE, radius=7),
                  rect(left, top, 5, ends[depth] - top, COLORS[color], radius=2),
                  text(left + 14, top + 18, f"for each {name}", 13, INK, bold=True)]
        inner = ends[depth + 1] if depth + 1 < len(LOOPS) else ends[depth]
        for rows, first in ((before, top + 38), (after, inner + 18)):
            for i, (words, shape, tensor) in enumerate(rows):
                parts += [text(left + 22, first + 20 * i, words, 12.5, COLORS[tensor]),
                          text(right - 10, first + 20 * i, shape, 12, MUTED, "end", mono=True)]
    return svg(y + 14, parts, "Four loops within each other: steps, epochs, minibatches, micro-batches, and what happens in each.")


def twins(chapter: dict) -> str:
    """Score, KL and kl_coef of each step: the hundred lines as a curve, PPOTrainer as circles."""
    curves = [("ppo/mean_scores", "score", "scores"), ("objective/kl", "KL", "kl"), ("objective/kl_coef", "kl_coef", "rewards")]
    axes = Axes(44, 40, 362, 150, (1, len(chapter["ours"])), (-0.5, 2.5))
    parts = axes.frame(x_ticks=range(1, len(chapter["ours"]) + 1), y_ticks=[0, 1, 2], x_label="step")
    parts += legend(44, 24, [(name, COLORS[tensor]) for _, name, tensor in curves])
    parts.append(text(406, 24, "line: yours, circles: PPOTrainer", 12, MUTED, "end"))
    for key, _, tensor in curves:
        yours, ours = ([stats[key] for stats in chapter[name]] for name in ("yours", "ours"))
        parts.append(axes.curve(range(1, len(yours) + 1), yours, COLORS[tensor]))
        parts += [dot(axes.x(i + 1), axes.y(value), COLORS[tensor], 4, 0.45) for i, value in enumerate(ours)]
    return svg(232, parts, "Curves: the two programs give the same score, KL and kl_coef in each step.")

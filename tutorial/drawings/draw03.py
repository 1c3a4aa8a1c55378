"""Figures of chapter 3."""

from ..figures import COLORS, INK, MUTED, heatmap, line, rect, svg, text


def weights(chapter: dict) -> str:
    """The attention weights worked out on paper: rows are the positions that look, columns those that are looked at."""
    rows, names = chapter["weights"].tolist(), ["position 0", "position 1", "position 2"]
    parts = [text(110, 24, "looks at position", 12, MUTED)]
    parts += heatmap(110, 50, rows, names, ["0", "1", "2"], COLORS["hidden"], 1.0, (72, 34))
    for i, mean in enumerate((21, 7, 27)):
        parts.append(text(344, 72 + 34 * i, f"mean {mean}", 13, INK))
    return svg(168, parts, "Attention weights: 1; 1/3, 2/3; 1/7, 2/7, 4/7; above the diagonal nothing.")


def block(chapter: dict) -> str:
    """From tokens to logits: each step with the shape of what leaves it, as letters and as in this chapter's run."""
    sizes, (B, T) = chapter["sizes"], chapter["tokens"].shape
    C, H, V = sizes.n_embd, sizes.n_head, sizes.vocab_size
    steps = [   # name, what it does, and the shape of what leaves it in letters and numbers
        ("tokens", "", "(B, T)", (B, T)),
        ("wte + wpe", "what and where", "(B, T, C)", (B, T, C)),
        ("ln_1", "normalise", "(B, T, C)", (B, T, C)),
        ("attn.c_attn", "q, k, v at once", "(B, T, 3C)", (B, T, 3 * C)),
        ("split heads", "q, k, v each", "(B, H, T, D)", (B, H, T, C // H)),
        ("causal attention", "ask the past", "(B, H, T, D)", (B, H, T, C // H)),
        ("join, attn.c_proj", "add to x", "(B, T, C)", (B, T, C)),
        ("ln_2, mlp.c_fc", "widen, gelu", "(B, T, 4C)", (B, T, 4 * C)),
        ("mlp.c_proj", "add to x", "(B, T, C)", (B, T, C)),
        ("ln_f", "the hidden states", "(B, T, C)", (B, T, C)),
        ("wte.T", "the logits", "(B, T, V)", (B, T, V))]

    def y(i):
        return 34 + 49 * i + (14 if i > 1 else 0)

    first, last, middle = y(2) - 11, y(8) + 38, 122
    parts = [rect(10, first, 204, last - first, COLORS["hidden"], COLORS["hidden"], 8, 0.07, dash=True),
             text(14, first - 6, f"L times, here {sizes.n_layer}", 12, COLORS["hidden"]),
             text(316, 22, "letters", 12, MUTED, "end"), text(406, 22, "here", 12, MUTED, "end")]
    for i, (name, what, letters, numbers) in enumerate(steps):
        strong = name in ("tokens", "causal attention", "wte.T")
        parts += [rect(40, y(i), 164, 28, COLORS["tokens"] if i in (0, 10) else COLORS["hidden"], radius=6, opacity=0.85 if strong else 0.65),
                  text(middle, y(i) + 19, name, 13, "#ffffff", "middle", bold=True), text(222, y(i) + 19, what, 12, MUTED),
                  text(316, y(i) + 41, letters, 12, INK, "end", mono=True),
                  text(406, y(i) + 41, "(" + ", ".join(map(str, numbers)) + ")", 11.5, MUTED, "end", mono=True)]
        if i < len(steps) - 1:
            parts.append(line([(middle, y(i) + 29), (middle, y(i + 1) - 2)], MUTED, 1.5, arrow=True))
    for start, end in ((2, 6), (7, 8)):                              # the residual stream passes by what is added to it
        parts.append(line([(middle, y(start) - 10), (24, y(start) - 10), (24, y(end) + 14), (37, y(end) + 14)],
                          COLORS["hidden"], 2, arrow=True))
    return svg(y(10) + 58, parts, "GPT-2: tokens, embeddings, L blocks of attention and MLP, hidden states, logits, with all shapes.")

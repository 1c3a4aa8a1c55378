"""Figures of chapter 4."""

from minippo.generation import Sampling

from ..figures import CARD, COLORS, INK, LINE, MUTED, line, rect, svg, text


def line_of_probabilities(chapter: dict) -> str:
    """The line from 0 to 1, cut by the cumulated probabilities of four words, for four ways to sample."""
    rows = [("as it is", Sampling()), ("temp. 0.5", Sampling(temperature=0.5)), ("temp. 2", Sampling(temperature=2.0)),
            ("top-p 0.7", Sampling(top_p=0.7))]
    left, width, top, u = 84, 318, 46, 0.6
    parts = [text(left, 24, "0", 11, MUTED, "middle"), text(left + width, 24, "1", 11, MUTED, "middle"),
             text(left + u * width, 24, "u = 0.6", 12, INK, "middle", bold=True)]
    for i, (name, sampling) in enumerate(rows):
        y, x = top + 40 * i, float(left)
        parts.append(text(left - 8, y + 19, name, 12, INK, "end"))
        for j, p in enumerate(sampling.filter(chapter["logits"])[0].softmax(-1).tolist()):
            if p > 0:
                parts += [rect(x, y, p * width, 28, COLORS["tokens"], CARD, 2, opacity=(0.75, 0.5, 0.3, 0.15)[j]),
                          text(x + p * width / 2, y + 19, "abcd"[j], 13, "#ffffff" if j == 0 else INK, "middle", bold=True)]
            x += p * width
    parts.append(line([(left + u * width, 30), (left + u * width, top + 152)], COLORS["kl"], 1.5, dash=True))
    return svg(top + 166, parts, "The line from 0 to 1: u = 0.6 falls on b, and with temperature 0.5 on a.")


def strip(chapter: dict) -> str:
    """The first row of the batch: what stands at each position, what it predicts, and which numbers are read there."""
    query, response, logprobs = chapter["queries"][0].tolist(), chapter["responses"][0].tolist(), chapter["logprobs"][0].tolist()
    tokens, Q = query + response, len(query)
    left, cell = 84, 318 / len(tokens)
    centre = [left + (i + 0.5) * cell for i in range(len(tokens))]
    parts = [text(left - 8, y, name, 12, MUTED, "end") for name, y in
             [("position", 44), ("token", 75), ("predicts", 141), ("column t", 186), ("logprob", 213)]]
    parts += [text(left + Q * cell / 2, 22, "query", 12, MUTED, "middle"),
              text(left + (Q + len(response) / 2) * cell, 22, "response", 12, COLORS["logprobs"], "middle")]
    for i, (x, token) in enumerate(zip(centre, tokens)):
        own = i >= Q
        parts += [text(x, 44, i, 12, MUTED, "middle"),
                  rect(x - cell / 2 + 2, 54, cell - 4, 32, COLORS["logprobs"] if own else COLORS["tokens"], radius=4, opacity=0.8),
                  text(x, 75, token, 14, "#ffffff", "middle", bold=True)]
        if Q - 1 <= i < len(tokens) - 1:
            t = i - Q + 1
            parts += [line([(x + 5, 121), (centre[i + 1] - 7, 89)], MUTED, 1.3, arrow=True),
                      rect(x - cell / 2 + 2, 122, cell - 4, 28, "none", COLORS["logprobs"], 4),
                      text(x, 141, tokens[i + 1], 14, COLORS["logprobs"], "middle", bold=True),
                      text(x, 186, t, 13, INK, "middle"),
                      text(x, 213, f"{logprobs[t]:.1f}".replace("-", "−"), 13, COLORS["logprobs"], "middle", bold=True)]
        elif i < Q - 1:
            parts.append(text(x, 141, tokens[i + 1], 13, MUTED, "middle"))
    parts += [line([(left - 60, 164), (left + 318, 164)], LINE, 1),
              text(centre[-1], 141, "–", 13, MUTED, "middle"),
              text(left + 318, 240, f"column t is read at position {Q} − 1 + t", 12, INK, "end")]
    return svg(256, parts, "Alignment: each response token is predicted one position before it stands, the first at the query's last token.")

"""Figures of chapter 5."""

from ..figures import COLORS, INK, LINE, MUTED, Axes, legend, line, rect, svg, text


def twin(chapter: dict) -> str:
    """The policy, one trunk with two heads, beside its frozen copy: what goes in and what comes out."""
    def tensor(x, y, name, shape, color):
        return [text(x, y, name, 13, color, "middle", mono=True, bold=True), text(x, y + 16, shape, 11.5, MUTED, "middle", mono=True)]

    parts = [text(110, 26, "policy", 14, INK, "middle", bold=True), text(110, 43, "is trained", 12, MUTED, "middle"),
             text(320, 26, "reference", 14, INK, "middle", bold=True), text(320, 43, "frozen on day one", 12, MUTED, "middle")]
    parts += tensor(56, 66, "logprobs", "(B, R)", COLORS["logprobs"]) + tensor(164, 66, "values", "(B, R)", COLORS["values"])
    parts += tensor(320, 66, "ref_logprobs", "(B, R)", COLORS["ref_logprobs"])
    for x, name, shape, color in ((56, "head: wte", "C → V", COLORS["logprobs"]), (164, "v_head", "C → 1", COLORS["values"])):
        parts += [line([(x, 112), (x, 88)], MUTED, arrow=True), rect(x - 46, 114, 92, 42, color, radius=6, opacity=0.85),
                  text(x, 132, name, 12.5, "#ffffff", "middle", bold=True), text(x, 148, shape, 11.5, "#ffffff", "middle", mono=True),
                  line([(x, 184), (x, 160)], MUTED, arrow=True)]
    parts += [line([(320, 112), (320, 88)], MUTED, arrow=True, dash=True),
              rect(274, 114, 92, 42, COLORS["ref_logprobs"], COLORS["ref_logprobs"], 6, 0.12, dash=True),
              text(320, 132, "head: wte", 12.5, MUTED, "middle", bold=True), text(320, 148, "C → V", 11.5, MUTED, "middle", mono=True),
              line([(320, 184), (320, 160)], MUTED, arrow=True, dash=True)]
    parts += [rect(10, 186, 200, 64, COLORS["hidden"], radius=8, opacity=0.85), text(110, 213, "trunk: wte, wpe, h, ln_f", 13, "#ffffff", "middle", bold=True),
              text(110, 233, "hidden (B, T, C)", 12, "#ffffff", "middle", mono=True),
              rect(232, 186, 176, 64, COLORS["hidden"], COLORS["hidden"], 8, 0.1, dash=True), text(320, 213, "the same, copied", 13, MUTED, "middle", bold=True),
              text(320, 233, "no gradients", 12, MUTED, "middle")]
    parts += [line([(110, 296), (110, 254)], MUTED, arrow=True), line([(320, 296), (320, 254)], MUTED, arrow=True, dash=True),
              rect(10, 298, 398, 32, COLORS["tokens"], radius=6, opacity=0.85),
              text(209, 319, "query then response, the same tokens for both", 13, "#ffffff", "middle")]
    return svg(342, parts, "One trunk with two heads gives logprobs and values; beside it the frozen copy gives ref_logprobs.")


def learning(chapter: dict) -> str:
    """The three values of the coin game while the head learns; dashed, the expected scores."""
    axes = Axes(40, 46, 366, 160, (0, len(chapter["curve"])), (-0.25, 0.75))
    parts = axes.frame([0, 50, 100, 150, 200], [-0.25, 0, 0.25, 0.5, 0.75], "training step")
    tints = (COLORS["values"], COLORS["logprobs"], COLORS["advantages"])
    parts += legend(40, 26, list(zip(("before anything", "after H", "after T"), tints)))
    for expected, values, color in zip((0.25, 0.5, 0.0), zip(*chapter["curve"]), tints):
        parts += [axes.curve([0, len(values)], [expected] * 2, color, 1.2, dash=True), axes.curve(range(len(values)), values, color)]
    return svg(246, parts, "Curves: the three values start at 0 and settle at 1/4, 1/2 and 0.")

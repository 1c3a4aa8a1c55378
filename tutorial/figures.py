"""The course's figures: SVG written by hand, from the tensors that the chapters print.

    python -m tutorial.figures              # run every chapter and draw its figures
    python -m tutorial.figures 01 08        # only these chapters
    python -m tutorial.figures --check      # write nothing; fail if a figure is out of step

A chapter's figures are the public functions of drawings/drawNN.py: each takes the namespace of the chapter after its last
block, returns an SVG, and is saved as images/NN_NAME.svg. One tensor has one colour in all of them. Figures are WIDTH
wide, so that their text can be read on a phone, and bring their own light card, so that they can be read on a dark page.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from html import escape
from typing import Callable, Sequence

from .build import HERE, chapters, run

WIDTH = 420
INK, MUTED, LINE, CARD = "#1c2024", "#5f6871", "#d9dad6", "#fbfbf9"
COLORS = {      # the colour of each tensor, in every figure
    "tokens": "#56606a", "logprobs": "#0072b2", "ref_logprobs": "#6d7883", "values": "#7b52ab", "scores": "#8a6d00",
    "kl": "#b3261e", "rewards": "#c75300", "advantages": "#00805d", "returns": "#007f8c", "ratio": "#a4458a",
    "hidden": "#3d6b4f", "optimum": "#1c2024", "negative": "#9c3d10",
}


# --- shapes -----------------------------------------------------------------------------------------------------------

def n(x: float) -> str:
    """A coordinate with one decimal: what is drawn must not depend on the last bits."""
    return f"{float(x):.1f}".removesuffix(".0").replace("-0.0", "0")


def text(x: float, y: float, words: object, size: float = 13, color: str = INK, anchor: str = "start", bold: bool = False,
         mono: bool = False) -> str:
    """Words with their baseline at y; anchor start, middle or end."""
    font = ' font-family="ui-monospace,Menlo,Consolas,monospace"' if mono else ""
    weight = ' font-weight="600"' if bold else ""
    return (f'<text x="{n(x)}" y="{n(y)}" font-size="{n(size)}" fill="{color}" text-anchor="{anchor}"{weight}{font}>'
            f'{escape(str(words), quote=False)}</text>')


def rect(x: float, y: float, width: float, height: float, fill: str = "none", stroke: str = "none", radius: float = 0,
         opacity: float = 1, dash: bool = False) -> str:
    return (f'<rect x="{n(x)}" y="{n(y)}" width="{n(max(width, 0))}" height="{n(max(height, 0))}" rx="{n(radius)}" fill="{fill}" '
            f'fill-opacity="{opacity:.2f}" stroke="{stroke}" stroke-width="1.5"{" stroke-dasharray=" + repr("4 3") if dash else ""}/>')


def line(points: Sequence[tuple[float, float]], color: str = LINE, width: float = 1.5, dash: bool = False, arrow: bool = False) -> str:
    """A polyline; `arrow` puts a head at its end."""
    joined = " ".join(f"{n(x)},{n(y)}" for x, y in points)
    return (f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="{n(width)}" stroke-linejoin="round"'
            f'{" stroke-dasharray=" + repr("4 3") if dash else ""}{" marker-end=" + repr("url(#head)") if arrow else ""}/>')


def dot(x: float, y: float, color: str, radius: float = 3, opacity: float = 1) -> str:
    return f'<circle cx="{n(x)}" cy="{n(y)}" r="{n(radius)}" fill="{color}" fill-opacity="{opacity:.2f}"/>'


def svg(height: float, parts: Sequence[str], title: str) -> str:
    """A whole figure: a light card WIDTH wide with `parts` on it; `title` is what a screen reader says."""
    head = ('<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{MUTED}"/></marker></defs>')
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{n(height)}" '
                      f'viewBox="0 0 {WIDTH} {n(height)}" font-family="system-ui,sans-serif" role="img">',
                      f"<title>{escape(title)}</title>", head,
                      rect(0.75, 0.75, WIDTH - 1.5, height - 1.5, CARD, LINE, radius=8), *parts, "</svg>"]) + "\n"


# --- charts -----------------------------------------------------------------------------------------------------------

class Axes:
    """A box on the page with a scale in each direction: .x and .y map data to the page."""

    def __init__(self, left: float, top: float, width: float, height: float, x_range: tuple, y_range: tuple):
        self.left, self.top, self.width, self.height = left, top, width, height
        self.x_range, self.y_range = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (float(value) - low) / (high - low) * self.width

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.top + self.height - (float(value) - low) / (high - low) * self.height

    def frame(self, x_ticks: Sequence[float] = (), y_ticks: Sequence[float] = (), x_label: str = "", y_label: str = "") -> list[str]:
        """Grid lines with their numbers, and the names of the axes."""
        parts = [line([(self.left, self.y(v)), (self.left + self.width, self.y(v))], width=1) for v in y_ticks]
        parts += [text(self.left - 6, self.y(v) + 4, f"{v:g}", 11, MUTED, "end") for v in y_ticks]
        bottom = self.top + self.height
        parts += [line([(self.left, bottom), (self.left + self.width, bottom)], MUTED, 1)]
        parts += [text(self.x(v), bottom + 15, f"{v:g}", 11, MUTED, "middle") for v in x_ticks]
        parts += [text(self.left + self.width, bottom + 31, x_label, 12, MUTED, "end")] if x_label else []
        return parts + ([text(self.left, self.top - 7, y_label, 12, MUTED)] if y_label else [])

    def curve(self, xs: Sequence[float], ys: Sequence[float], color: str, width: float = 2, dash: bool = False) -> str:
        return line([(self.x(x), self.y(y)) for x, y in zip(xs, ys)], color, width, dash)


def heatmap(left: float, top: float, rows, row_names: Sequence[str], column_names: Sequence[str], color: str, limit: float,
            cell: tuple[float, float] = (52, 30), decimals: int = 2) -> list[str]:
    """Numbers in tinted cells: `color` above 0, COLORS["negative"] below, full tint at `limit`."""
    width, height = cell
    parts = [text(left + (j + 0.5) * width, top - 8, name, 12, MUTED, "middle") for j, name in enumerate(column_names)]
    for i, (row, name) in enumerate(zip(rows, row_names)):
        y = top + i * height
        parts.append(text(left - 8, y + height / 2 + 4, name, 12, INK, "end"))
        for j, value in enumerate(float(v) for v in row):
            tint = 0.75 * min(1.0, abs(value) / limit)
            parts.append(rect(left + j * width + 1, y + 1, width - 2, height - 2, color if value >= 0 else COLORS["negative"],
                              radius=3, opacity=tint))
            words = f"{value:.{decimals}f}".replace("-", "−") if round(value, decimals) else "0"
            parts.append(text(left + (j + 0.5) * width, y + height / 2 + 4, words, 12, "#ffffff" if tint > 0.5 else INK, "middle"))
    return parts


def legend(x: float, y: float, entries: Sequence[tuple[str, str]], gap: float = 14) -> list[str]:
    """Coloured squares with names, side by side: entries are (name, colour)."""
    parts = []
    for name, color in entries:
        parts += [rect(x, y - 9, 10, 10, color, radius=2), text(x + 15, y, name, 12)]
        x += 15 + 6.6 * len(name) + gap
    return parts


# --- where you are ----------------------------------------------------------------------------------------------------

STAGES = [("sample", "tokens"), ("rollout", "logprobs"), ("score", "scores"), ("KL reward", "rewards"),
          ("advantages", "advantages"), ("update", "ratio")]
WHERE = {2: (5,), 3: (0, 1), 4: (0, 1), 5: (1,), 6: (2,), 7: (3,), 8: (4,), 9: (5,), 11: (3, 4, 5)}     # all of them otherwise


def where(chapter: int) -> str:
    """The loop as six chips; the chapter's own are filled."""
    parts, x, stages = [], 10.0, WHERE.get(chapter, range(6))
    widths = [54, 52, 44, 70, 79, 54]
    for i, ((name, tensor), width) in enumerate(zip(STAGES, widths)):
        here = i in stages
        parts.append(rect(x, 12, width, 26, COLORS[tensor] if here else CARD, COLORS[tensor] if here else LINE, radius=6))
        parts.append(text(x + width / 2, 29, name, 11, "#ffffff" if here else MUTED, "middle", bold=here))
        if i < 5:
            parts.append(line([(x + width, 25), (x + width + 8.5, 25)], MUTED, 1.2, arrow=True))
        x += width + 9.4
    parts.append(line([(x - 9.4 - 27, 38), (x - 9.4 - 27, 50), (37, 50), (37, 41)], MUTED, 1.2, arrow=True))
    names = ", ".join(STAGES[i][0] for i in stages)
    return svg(60, parts, f"The loop: sample, rollout, score, KL reward, advantages, update, and again. This chapter: {names}.")


# --- all of them ------------------------------------------------------------------------------------------------------

def drawings(number: str) -> dict[str, Callable[[dict], str]]:
    """The drawing functions of a chapter by the name of their file in images/."""
    if not (HERE / f"drawings/draw{number}.py").exists():
        return {}
    module = importlib.import_module(f"tutorial.drawings.draw{number}")
    return {f"{number}_{name}.svg": f for name, f in vars(module).items()
            if getattr(f, "__module__", "") == module.__name__ and not name.startswith("_")}


def figures(number: str, namespace: dict) -> dict[str, str]:
    """All figures of a chapter, drawn from its namespace: file name -> SVG."""
    return {f"loop_{number}.svg": where(int(number))} | {name: draw(namespace) for name, draw in drawings(number).items()}


def same_picture(one: str, other: str, within: float = 1) -> bool:
    """Equal but for coordinates, which may differ by a pixel: learnt numbers differ a little from machine to machine.

    A drawing of many sampled runs, of which a last bit may turn one, says how far: its attribute `within`.
    """
    coordinate = re.compile(r"(?<=[\", ])-?\d+(?:\.\d+)?(?=[\", ])")
    if coordinate.sub("#", one) != coordinate.sub("#", other):
        return False
    return all(abs(float(a) - float(b)) <= within for a, b in zip(coordinate.findall(one), coordinate.findall(other)))


def draw_all(wanted: Sequence[str] = (), check: bool = False) -> list[str]:
    """Run the chapters, draw their figures; the names of those that were out of step."""
    stale = []
    for path in chapters():
        number = path.name[:2]
        if wanted and number not in wanted:
            continue
        for name, picture in figures(number, run(path)[0] if drawings(number) else {}).items():
            file = HERE / "images" / name
            within = getattr(drawings(number).get(name), "within", 1)
            if not file.exists() or not same_picture(file.read_text(encoding="utf-8"), picture, within):
                stale.append(name)
                if not check:
                    file.write_text(picture, encoding="utf-8")
    return stale


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tutorial.figures", description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", metavar="NN", help="two digits; all chapters if none is given")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a figure is out of step")
    arguments = parser.parse_args()
    changed = draw_all(arguments.chapters, arguments.check)
    print("\n".join(f"{'out of step' if arguments.check else 'drawn'}: {name}" for name in changed) or "all in step")
    sys.exit(bool(changed and arguments.check))

"""A small writer of charts as SVG: light, with axis labels, and every value printed at its bar or point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

INK, GREY, LINE, PAPER = "#1f2933", "#616e7c", "#e4e7eb", "#ffffff"
PALETTE = ("#2563eb", "#f59e0b", "#10b981", "#8b5cf6", "#ef4444", "#0891b2")
OTHERS = "#9aa5b1"
"""The colour of the peer."""
_FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\""


@dataclass
class Drawing:
    """Grows element by element."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, text: str, size: int = 13, anchor: str = "start", ink: str = INK, **more: str
    ) -> None:
        extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
        place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{ink}"'
        self.parts.append(f"<text {place}{extra}>{escape(text)}</text>")

    def bar(self, x: float, y: float, width: float, height: float, colour: str, title: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{max(height, 0.5):.1f}" rx="1.5" '
            f'fill="{colour}"><title>{escape(title)}</title></rect>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, ink: str = LINE) -> None:
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{ink}"/>')

    def write(self, path: Path, title: str) -> None:
        """The file is written; `title` is what a screen reader says."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:.0f} {self.height:.0f}" '
            f'width="{self.width:.0f}" height="{self.height:.0f}" role="img" {_FONT}>'
        )
        paper = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
        path.write_text("\n".join([head, f"<title>{escape(title)}</title>", paper, *self.parts, "</svg>"]) + "\n")


def ticks(most: float) -> list[float]:
    """Round values from 0 to at least `most`, four to eight of them."""
    unit = 1.0
    while unit * 8 < most:
        unit *= 10
    while unit * 8 / 10 >= most:
        unit /= 10
    for factor in (0.1, 0.2, 0.5, 1.0):
        if most / (unit * factor) <= 7:
            unit *= factor
            break
    count = int(most / unit - 1e-9) + 1
    return [unit * number for number in range(count + 1)]


def heading(drawing: Drawing, title: str, subtitle: str) -> None:
    drawing.text(24, 34, title, size=18, font_weight="600")
    drawing.text(24, 56, subtitle, size=12, ink=GREY)


def legend(drawing: Drawing, x: float, y: float, entries: Sequence[tuple[str, str]]) -> None:
    """(text, colour) side by side."""
    for text, colour in entries:
        drawing.bar(x, y - 10, 12, 12, colour, text)
        drawing.text(x + 18, y, text, size=12)
        x += 34 + 6.8 * len(text)


def stacked(
    path: Path,
    title: str,
    subtitle: str,
    axis: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]],
    digits: int = 2,
) -> None:
    """One horizontal bar a row, made of (part, value, colour); the sum stands at its end, with so many digits."""
    left, right, top, pitch, thick = 190.0, 90.0, 110.0, 46.0, 26.0
    drawing = Drawing(860, top + pitch * len(rows) + 64)
    heading(drawing, title, subtitle)
    parts = {part: colour for _, row in rows for part, _, colour in row}
    legend(drawing, 24, 84, list(parts.items()))
    marks = ticks(max(sum(value for _, value, _ in row) for _, row in rows))
    scale = (drawing.width - left - right) / marks[-1]
    floor = top + pitch * len(rows)
    for mark in marks:
        drawing.line(left + mark * scale, top - 8, left + mark * scale, floor)
        drawing.text(left + mark * scale, floor + 18, f"{mark:g}", size=12, anchor="middle", ink=GREY)
    drawing.text(left + (drawing.width - left - right) / 2, floor + 42, axis, size=12, anchor="middle", ink=GREY)
    for number, (name, row) in enumerate(rows):
        x, y = left, top + pitch * number + (pitch - thick) / 2 - 4
        drawing.text(left - 12, y + thick / 2 + 5, name, anchor="end")
        for part, value, colour in row:
            drawing.bar(x, y, value * scale, thick, colour, f"{name}, {part}: {value:.3f}")
            x += value * scale
        drawing.text(x + 8, y + thick / 2 + 5, f"{sum(value for _, value, _ in row):.{digits}f}", font_weight="600")
    drawing.write(path, title)


def grouped(
    path: Path,
    title: str,
    subtitle: str,
    axes: tuple[str, str],
    groups: Sequence[tuple[str, Sequence[tuple[str, float, str]]]],
    unit: str,
) -> None:
    """Upright bars: groups of (series, value, colour). `axes` name x and y; `unit` follows each printed value."""
    left, right, top, tall = 80.0, 24.0, 120.0, 260.0
    drawing = Drawing(860, top + tall + 76)
    heading(drawing, title, subtitle)
    series = {name: colour for _, group in groups for name, _, colour in group}
    legend(drawing, 24, 84, list(series.items()))
    marks = ticks(max(value for _, group in groups for _, value, _ in group))
    scale, floor = tall / marks[-1], top + tall
    for mark in marks:
        drawing.line(left, floor - mark * scale, drawing.width - right, floor - mark * scale)
        drawing.text(left - 10, floor - mark * scale + 4, f"{mark:g}", size=12, anchor="end", ink=GREY)
    middle = top + tall / 2
    drawing.text(26, middle, axes[1], size=12, anchor="middle", ink=GREY, transform=f"rotate(-90 26 {middle:.1f})")
    drawing.text((left + drawing.width - right) / 2, floor + 56, axes[0], size=12, anchor="middle", ink=GREY)
    pitch = (drawing.width - left - right) / len(groups)
    for number, (label, group) in enumerate(groups):
        wide = min(72.0, 0.8 * pitch / len(group))
        x = left + pitch * (number + 0.5) - wide * len(group) / 2
        drawing.text(left + pitch * (number + 0.5), floor + 24, label, anchor="middle")
        for name, value, colour in group:
            drawing.bar(
                x + 4, floor - value * scale, wide - 8, value * scale, colour, f"{name}, {label}: {value:.1f} {unit}"
            )
            y = floor - value * scale - 7
            drawing.text(x + wide / 2, y, f"{value:.1f} {unit}", size=12, anchor="middle", font_weight="600")
            x += wide
    drawing.line(left, floor, drawing.width - right, floor, ink=GREY)
    drawing.write(path, title)


@dataclass(frozen=True)
class Panel:
    """Points (x, least, middle, most) in logarithmic axes."""

    title: str
    axis: str
    points: Sequence[tuple[float, float, float, float]]


def _decades(low: float, high: float) -> list[float]:
    """The powers of ten from at most `low` to at least `high`, two at least."""
    first = math.floor(math.log10(low) + 1e-9)
    last = max(first + 1, math.ceil(math.log10(high) - 1e-9))
    return [10.0**power for power in range(first, last + 1)]


def panels(path: Path, title: str, subtitle: str, axis: str, shown: Sequence[Panel]) -> None:
    """Two panels beside each other, with one vertical axis for all. A line joins the middles; least and most are a
    stroke through each."""
    wide, high, left, top = 340.0, 200.0, 84.0, 104.0
    drawing = Drawing(2 * (wide + left) + 30, top + (len(shown) + 1) // 2 * (high + 96))
    heading(drawing, title, subtitle)
    spans = [point for panel in shown for point in panel.points]
    ys = _decades(min(point[1] for point in spans), max(point[3] for point in spans))
    for number, panel in enumerate(shown):
        x0, y0 = left + number % 2 * (wide + left), top + number // 2 * (high + 96)
        _panel(drawing, panel, (x0, y0, wide, high), ys, axis)
    drawing.write(path, title)


def _panel(
    drawing: Drawing, panel: Panel, box: tuple[float, float, float, float], ys: Sequence[float], axis: str
) -> None:
    x0, y0, wide, high = box
    xs = _decades(min(point[0] for point in panel.points), max(point[0] for point in panel.points))

    def across(x: float) -> float:
        return x0 + wide * math.log10(x / xs[0]) / math.log10(xs[-1] / xs[0])

    def down(y: float) -> float:
        return y0 + high * (1 - math.log10(y / ys[0]) / math.log10(ys[-1] / ys[0]))

    drawing.text(x0, y0 - 12, panel.title, font_weight="600")
    for y in ys:
        drawing.line(x0, down(y), x0 + wide, down(y))
        drawing.text(x0 - 8, down(y) + 4, f"{y:g}", size=12, anchor="end", ink=GREY)
    for x in xs:
        drawing.line(across(x), y0, across(x), y0 + high)
        drawing.text(across(x), y0 + high + 18, f"{x:,.0f}", size=12, anchor="middle", ink=GREY)
    drawing.text(x0 + wide / 2, y0 + high + 38, panel.axis, size=12, anchor="middle", ink=GREY)
    drawing.text(
        x0 - 52, y0 + high / 2, axis, size=12, anchor="middle", ink=GREY,
        transform=f"rotate(-90 {x0 - 52:.1f} {y0 + high / 2:.1f})",
    )  # fmt: skip
    for one, other in zip(panel.points, panel.points[1:], strict=False):
        drawing.line(across(one[0]), down(one[2]), across(other[0]), down(other[2]), ink=PALETTE[0])
    for x, least, middle, most in panel.points:
        drawing.line(across(x), down(least), across(x), down(most), ink=OTHERS)
        said = f"{x:,.0f} {panel.axis}: {middle:.3f} s ({least:.3f} to {most:.3f})"
        drawing.bar(across(x) - 4, down(middle) - 4, 8, 8, PALETTE[0], said)
        drawing.text(across(x), down(middle) - 10, f"{middle:.2f}", size=12, anchor="middle")

"""Points and lines as one inlined SVG in the page's own colours: nothing is fetched, and Tab goes from point to point."""

import base64
import html
import io
import math
import re
from dataclasses import dataclass, field

from PIL import Image

COLORS = (  # told apart by colour-blind eyes, too, and on white as on black
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#A6761D",
)  # fmt: skip
W, H, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 52, 12, 26, 40
CARD = 184  # of a point's picture
LINE = 22  # of the names below, and of what is said of a point


@dataclass
class Point:
    """label: what is said of it; picture: what stands behind it; filled: on its front."""

    x: float
    y: float
    label: str
    picture: Image.Image | None = None
    filled: bool = True


@dataclass
class Series:
    name: str
    points: list[Point] = field(default_factory=list)


def chart(series: list[Series], x: str, y: str, dots: bool = True) -> str:
    """An <svg>: a line for each series; with dots, points that show their picture when pointed at or reached by Tab."""
    series = [s for s in series if s.points]
    if not series:
        return ""
    points = [p for s in series for p in s.points]
    (x0, x1), (y0, y1) = (_range([getattr(p, axis) for p in points]) for axis in "xy")
    at = lambda p: (
        LEFT + (p.x - x0) / (x1 - x0) * (W - LEFT - RIGHT),
        H - BOTTOM - (p.y - y0) / (y1 - y0) * (H - TOP - BOTTOM),
    )
    height = H + LINE * len(series)
    said = html.escape(f"{y} against {x}")
    parts = [f'<svg class="chart" viewBox="0 0 {W} {height}" role="group" aria-label="{said}">']
    line = lambda path: f'<path d="{path}" stroke="currentColor" opacity=".12"/>'
    for value in _ticks(x0, x1):
        px, _ = at(Point(value, y0, ""))
        parts += [line(f"M{px:.0f} {TOP}V{H - BOTTOM}"), _text(px, H - BOTTOM + 16, f"{value:g}", "middle")]
    for value in _ticks(y0, y1):
        _, py = at(Point(x0, value, ""))
        parts += [line(f"M{LEFT} {py:.0f}H{W - RIGHT}"), _text(LEFT - 6, py + 4, f"{value:g}", "end")]
    parts += [_text((W + LEFT) / 2, H - 3, x, "middle"), _text(LEFT, 16, y, "start")]
    above = []
    for i, s in enumerate(series):
        color = COLORS[i % len(COLORS)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in map(at, s.points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6" opacity=".8"/>')
        y_name = H + LINE * i + 10  # below: the best points lie in the upper right
        parts.append(f'<path d="M{LEFT} {y_name - 4}h24" stroke="{color}" stroke-width="3"/>')
        parts.append(_text(LEFT + 32, y_name, s.name))
        above += [_dot(p, *at(p), color) for p in s.points] if dots else []
    return "".join([*parts, *above, "</svg>"])


def _dot(p: Point, px: float, py: float, color: str) -> str:
    lines = re.split("[:;] ", p.label)
    width, height = CARD + 8, (CARD + 4 if p.picture else 0) + LINE * len(lines) + 6
    left, top = min(max(px + 12, 4), W - width - 4), min(max(py - height - 8, 2), H - height)
    if left < px < left + width and top < py < top + height:  # the card would hide its own point
        left = px - width - 12
    label = html.escape(p.label)
    # About which a larger card, as style.CSS has it on a phone, stays over the chart.
    origin = f"{100 * (left - 4) / (W - width - 8):.0f}% {100 * (top - 2) / (H - height - 2):.0f}%"
    card = [f'<rect class="card" x="{left:.0f}" y="{top:.0f}" width="{width}" height="{height}" rx="3"/>']
    if p.picture:
        at = f'x="{left + 4:.0f}" y="{top + 4:.0f}" width="{CARD}" height="{CARD}"'
        card.append(f'<image {at} href="{_data(p.picture)}"/>')
    card += [_text(left + 6, top + height - LINE * n - 7, said) for n, said in enumerate(reversed(lines))]
    return (
        f'<g class="point" tabindex="0" role="img" aria-label="{label}"><circle cx="{px:.1f}" cy="{py:.1f}" r="5" '
        f'stroke="{color}" stroke-width="2" fill="{color if p.filled else "var(--block-background-fill)"}"/>'
        f'<g class="shot" style="transform-origin: {origin}">{"".join(card)}</g></g>'
    )


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between the two."""
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="currentColor">{html.escape(text)}</text>'


def _data(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.convert("RGB").save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"

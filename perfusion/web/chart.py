"""Points and lines as one inlined SVG in the page's own colours: nothing is fetched, and Tab goes from point to point."""

import base64
import html
import io
import math
from dataclasses import dataclass, field

from PIL import Image

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by colour-blind eyes, too
W, H, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 52, 12, 26, 40
CARD = 150  # pixels of a point's picture


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
    parts = [f'<svg class="chart" viewBox="0 0 {W} {H}" role="group" aria-label="{html.escape(f"{y} against {x}")}">']
    line = lambda path: f'<path d="{path}" stroke="currentColor" opacity=".12"/>'
    for value in _ticks(x0, x1):
        px, _ = at(Point(value, y0, ""))
        parts += [line(f"M{px:.0f} {TOP}V{H - BOTTOM}"), _text(px, H - BOTTOM + 14, f"{value:g}", "middle")]
    for value in _ticks(y0, y1):
        _, py = at(Point(x0, value, ""))
        parts += [line(f"M{LEFT} {py:.0f}H{W - RIGHT}"), _text(LEFT - 6, py + 4, f"{value:g}", "end")]
    parts += [_text((W + LEFT) / 2, H - 6, x, "middle"), _text(LEFT, 12, y, "start")]
    above = []
    for i, s in enumerate(series):
        color = COLORS[i % len(COLORS)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in map(at, s.points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6" opacity=".8"/>')
        parts.append(
            f'<text x="{W - RIGHT}" y="{TOP + 14 * i + 12}" text-anchor="end" fill="{color}">{html.escape(s.name)}</text>'
        )
        above += [_dot(p, *at(p), color) for p in s.points] if dots else []
    return "".join([*parts, *above, "</svg>"])


def _dot(p: Point, px: float, py: float, color: str) -> str:
    left, top = min(max(px + 10, 4), W - CARD - 8), min(max(py - CARD - 20, 2), H - CARD - 24)
    if abs(px - left) < CARD and top < py < top + CARD + 20 and px > left:  # the card would hide its own point
        left = px - CARD - 14
    label = html.escape(p.label)
    card = (
        f'<rect class="card" x="{left:.0f}" y="{top:.0f}" width="{CARD + 4}" height="{CARD + 20}" rx="3"/>'
        if p.picture
        else ""
    )
    shot = (
        f'<image x="{left + 2:.0f}" y="{top + 2:.0f}" width="{CARD}" height="{CARD}" href="{_data(p.picture)}"/>'
        if p.picture
        else ""
    )
    said = (
        _text(left + 4, top + CARD + 15, p.label)
        if p.picture
        else _text(min(px + 8, W - 200), max(py - 8, 12), p.label)
    )
    return (
        f'<g class="point" tabindex="0" role="img" aria-label="{label}"><circle cx="{px:.1f}" cy="{py:.1f}" r="5" stroke="{color}" '
        f'stroke-width="2" fill="{color if p.filled else "var(--block-background-fill)"}"><title>{label}</title></circle>'
        f'<g class="shot">{card}{shot}{said}</g></g>'
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

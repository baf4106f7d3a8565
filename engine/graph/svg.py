"""The topology as an SVG picture.

Job: lay out the boxes of `graph_parts` in rows and label the sockets between the rows.
Does not know: the topology itself.
Invariants: no script, no font to fetch; all text is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from ..topology import Topology
from .parts import Box, Link, parts_of

_MARGIN = 32
_GAP = 48
_LINE = 18
_PADDING = 14
_CHARACTER = 7.2
_SOCKETS_AT = 118
_CARRIES_AT = 242

_FILLS = {
    "trainer": ("#fff4e0", "#d98f1f"),
    "broker": ("#e3edfb", "#3568b8"),
    "stage": ("#e5f5ea", "#2f8a4e"),
    "router": ("#efe7fa", "#7449b5"),
    "backend": ("#fbe6ec", "#b83a62"),
}

_STYLE = """
text{font:13px ui-sans-serif,system-ui,"Segoe UI",Helvetica,Arial,sans-serif;fill:#1f2933}
.title{font-size:15px;font-weight:600}.heading{font-size:17px;font-weight:600}
.sockets{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:12px}
.quiet{fill:#66727f;font-size:12px}.link{stroke:#8593a1;stroke-width:1.5;fill:none}
.tip{fill:#8593a1}.leader{stroke:#c9d1d9;stroke-dasharray:2 4;fill:none}
"""


@dataclass(frozen=True, slots=True)
class _Frame:
    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> float:
        return self.x + self.width / 2


@dataclass(slots=True)
class _Canvas:
    width: float
    y: float = _MARGIN
    drawn: str = ""
    labels: float = 0

    def wide(self, box: Box, kind: str) -> None:
        self.row([box], kind, _MARGIN, self.width)

    def row(self, boxes: Sequence[Box], kind: str, x: float, width: float) -> list[_Frame]:
        height = max(_height(box) for box in boxes)
        frames = [_Frame(x + i * (width + _GAP), self.y, width, height) for i in range(len(boxes))]
        for box, frame in zip(boxes, frames, strict=True):
            self.drawn += _drawn_box(box, frame, kind)
        self.y += height
        return frames

    def links(self, links: Sequence[Link], columns: Sequence[float]) -> None:
        height = max(_LINE * len(links) + 24, 56)
        for x in columns:
            self.drawn += _both_ways(x, self.y + 3, self.y + height - 3)
        x, top = self.width + 2 * _MARGIN, self.y + (height - _LINE * len(links)) / 2 + 13
        self.drawn += _leader(max(columns) + 6, x - 10, self.y + height / 2)
        for i, link in enumerate(links):
            self.drawn += _drawn_label(link, x, top + i * _LINE)
            self.labels = max(self.labels, _label_width(link))
        self.y += height

    def between(self, frames: Sequence[_Frame]) -> None:
        for left, right in pairwise(frames):
            y = left.y + left.height / 2
            self.drawn += _onward(left.x + left.width + 4, right.x - 4, y)


def svg(topology: Topology) -> str:
    """Return a picture of the topology as an SVG document, ending with a newline."""
    parts = parts_of(topology)
    stage_width = _column(parts.stages)
    backend_width = _column(parts.backends)
    rows = ((stage_width, len(parts.stages)), (backend_width, len(parts.backends)))
    inner = max([_column([parts.broker]), *(_row_width(*row) for row in rows)])
    canvas = _Canvas(inner)
    canvas.drawn += _text(_MARGIN, canvas.y + 6, parts.heading, "heading")
    canvas.y += 28
    canvas.wide(parts.trainer, "trainer")
    canvas.links(parts.to_trainer, [_MARGIN + inner / 2])
    canvas.wide(parts.broker, "broker")
    start = _MARGIN + (inner - _row_width(*rows[0])) / 2
    centres = _centres(start, *rows[0])
    canvas.links(parts.to_stages, centres)
    canvas.between(canvas.row(parts.stages, "stage", start, stage_width))
    if parts.router:
        canvas.links(parts.to_router, [centres[i] for i in parts.generating])
        canvas.wide(parts.router, "router")
    if parts.backends:
        start = _MARGIN + (inner - _row_width(*rows[1])) / 2
        canvas.links(parts.to_backends, _centres(start, *rows[1]))
        canvas.row(parts.backends, "backend", start, backend_width)
    return _document(canvas, parts.heading)


def _document(canvas: _Canvas, heading: str) -> str:
    width, height = canvas.width + 3 * _MARGIN + canvas.labels, canvas.y + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img">\n'
        f"<title>{escape(heading)}</title>\n<style>{_STYLE}</style>\n"
        f'<rect width="100%" height="100%" rx="12" fill="#ffffff"/>{canvas.drawn}\n</svg>\n'
    )


def _drawn_box(box: Box, frame: _Frame, kind: str) -> str:
    fill, stroke = _FILLS[kind]
    lines = [box.title, *box.lines]
    top = frame.y + (frame.height - _LINE * len(lines)) / 2 + 13
    drawn = (
        f'\n<rect x="{frame.x:g}" y="{frame.y:g}" width="{frame.width:g}" '
        f'height="{frame.height:g}" rx="8" fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
    )
    for i, line in enumerate(lines):
        drawn += _text(
            frame.centre, top + i * _LINE, line, "title" if i == 0 else "quiet", "middle"
        )
    return drawn


def _drawn_label(link: Link, x: float, y: float) -> str:
    return (
        _text(x, y, link.edge, "sockets")
        + _text(x + _SOCKETS_AT, y, link.sockets, "sockets")
        + _text(x + _CARRIES_AT, y, _carries(link), "quiet")
    )


def _label_width(link: Link) -> float:
    return _CARRIES_AT + len(_carries(link)) * _CHARACTER


def _carries(link: Link) -> str:
    return f"{link.carries} ({link.where})"


def _both_ways(x: float, top: float, bottom: float) -> str:
    return (
        f'\n<path class="link" d="M{x:g} {top + 6:g}V{bottom - 6:g}"/><path class="tip" '
        f'd="M{x:g} {top:g}l5 9h-10zM{x:g} {bottom:g}l5 -9h-10z"/>'
    )


def _onward(left: float, right: float, y: float) -> str:
    return (
        f'\n<path class="link" d="M{left:g} {y:g}H{right - 6:g}"/>'
        f'<path class="tip" d="M{right:g} {y:g}l-9 5v-10z"/>'
    )


def _leader(start: float, end: float, y: float) -> str:
    return f'\n<path class="leader" d="M{start:g} {y:g}H{end:g}"/>'


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'\n<text class="{style}" {place}>{escape(text)}</text>'


def _height(box: Box) -> float:
    return _LINE * (1 + len(box.lines)) + 2 * _PADDING


def _column(boxes: Sequence[Box]) -> float:
    longest = max((len(text) for box in boxes for text in (box.title, *box.lines)), default=0)
    return max(longest * _CHARACTER + 2 * _PADDING, 120)


def _row_width(width: float, count: int) -> float:
    return max(count * (width + _GAP) - _GAP, 0)


def _centres(start: float, width: float, count: int) -> list[float]:
    return [start + i * (width + _GAP) + width / 2 for i in range(count)]

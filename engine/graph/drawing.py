"""Pictures of a topology: text for a terminal, Mermaid for a page, SVG for everything else.

Job: draw what `graph_parts` says.
Does not know: files; each function returns text.
Invariants: the same topology gives the same picture.
"""

from collections.abc import Iterable, Sequence

from ..topology import Topology
from .parts import Box, Link, Parts, parts_of
from .svg import svg

__all__ = ["ascii_graph", "mermaid", "svg"]

_ARROW = " ---> "
_APART = " " * 6
_MARGIN = 2
_TRUNK = 4


def ascii_graph(topology: Topology) -> str:
    """Return a drawing of the topology in ASCII, ending with a newline."""
    parts = parts_of(topology)
    stages = _row(parts.stages, _ARROW)
    backends = _row(parts.backends, _APART)
    width = max(_width(stages), _width(backends), *_text_widths(parts)) + 2 * _MARGIN
    centres = _centres(parts.stages, _ARROW, width)
    lines = [parts.heading, "", *_wide(parts.trainer, width), *_labels(parts.to_trainer)]
    lines += [*_wide(parts.broker, width), *_labels(parts.to_stages), *_fan(centres)]
    lines += _centred(stages, width)
    if parts.router:
        lines += reversed(_fan([centres[i] for i in parts.generating]))
        lines += [*_labels(parts.to_router), *_wide(parts.router, width)]
    if parts.backends:
        lines += _labels(parts.to_backends)
        lines += _fan(_centres(parts.backends, _APART, width))
        lines += _centred(backends, width)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def mermaid(topology: Topology) -> str:
    """Return the topology as a Mermaid flowchart, ending with a newline."""
    parts = parts_of(topology)
    lines = ["flowchart TB", f"  trainer([{_mermaid_text(parts.trainer)}])"]
    lines += [f"  broker[{_mermaid_text(parts.broker)}]", '  subgraph stages["stages"]']
    lines.append("    direction LR")
    lines += [f"    s{i}[{_mermaid_text(stage)}]" for i, stage in enumerate(parts.stages)]
    lines += [f"    s{i} --> s{i + 1}" for i in range(len(parts.stages) - 1)]
    lines += ["  end", f"  trainer <-->|{_mermaid_label(parts.to_trainer)}| broker"]
    lines.append(f"  broker <-->|{_mermaid_label(parts.to_stages)}| stages")
    if parts.router:
        label = _mermaid_label(parts.to_router)
        lines.append(f"  router[{_mermaid_text(parts.router)}]")
        lines += [f"  s{i} <-->|{label}| router" for i in parts.generating]
    for i, backend in enumerate(parts.backends):
        lines.append(f"  b{i}[({_mermaid_text(backend)})]")
        lines.append(f"  router <-->|{_mermaid_label(parts.to_backends)}| b{i}")
    return "\n".join(lines) + "\n"


def _mermaid_text(box: Box) -> str:
    return f'"{"<br/>".join([f"<b>{box.title}</b>", *box.lines])}"'


def _mermaid_label(links: Iterable[Link]) -> str:
    return f'"{"<br/>".join(f"{link.edge}: {link.sockets}" for link in links)}"'


def _box(box: Box) -> list[str]:
    width = _box_width(box) - 4
    edge = f"+{'-' * (width + 2)}+"
    return [edge, *(f"| {text:<{width}} |" for text in (box.title, *box.lines)), edge]


def _box_width(box: Box) -> int:
    return max(len(text) for text in (box.title, *box.lines)) + 4


def _row(boxes: Sequence[Box], between: str) -> list[str]:
    height = max((len(box.lines) for box in boxes), default=0)
    drawn = [_box(Box(box.title, _padded(box.lines, height))) for box in boxes]
    rows = list(zip(*drawn, strict=True))
    gaps = [between if i == 1 else " " * len(between) for i in range(len(rows))]
    return [gap.join(row) for gap, row in zip(gaps, rows, strict=True)]


def _padded(lines: tuple[str, ...], height: int) -> tuple[str, ...]:
    return lines + ("",) * (height - len(lines))


def _wide(box: Box, width: int) -> list[str]:
    edge = f"+{'-' * (width - 2)}+"
    return [edge, *(f"|{text:^{width - 2}}|" for text in (box.title, *box.lines)), edge]


def _centred(rows: list[str], width: int) -> list[str]:
    return [" " * ((width - _width(rows)) // 2) + row for row in rows]


def _centres(boxes: Sequence[Box], between: str, width: int) -> list[int]:
    widths = [_box_width(box) for box in boxes]
    left = (width - sum(widths) - len(between) * (len(widths) - 1)) // 2
    centres = []
    for box_width in widths:
        centres.append(left + box_width // 2)
        left += box_width + len(between)
    return centres


def _labels(links: Sequence[Link]) -> list[str]:
    edge = max((len(link.edge) for link in links), default=0)
    carries = max((len(link.carries) for link in links), default=0)
    return [
        f"{'|':>{_TRUNK + 1}}  {link.edge:<{edge}}  {link.sockets:<15}  "
        f"{link.carries:<{carries}}  {link.where}"
        for link in links
    ]


def _fan(columns: Sequence[int]) -> list[str]:
    ends = {_TRUNK, *columns}
    span = range(max(ends) + 1)
    bar = "".join("+" if i in ends else "-" if i > min(ends) else " " for i in span)
    return [bar, "".join("|" if i in columns else " " for i in span)]


def _width(rows: Iterable[str]) -> int:
    return max((len(row) for row in rows), default=0)


def _text_widths(parts: Parts) -> list[int]:
    wide = [box for box in (parts.trainer, parts.broker, parts.router) if box]
    return [len(text) for box in wide for text in (box.title, *box.lines)]

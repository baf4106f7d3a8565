"""Topologies drawn: as text for a terminal, as Mermaid, and as SVG."""

from .drawing import ascii_graph, mermaid
from .svg import svg

__all__ = ["ascii_graph", "mermaid", "svg"]

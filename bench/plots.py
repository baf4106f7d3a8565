"""Charts of the benches' results, drawn without a display.

Apart from `measure` because only those who want a picture should need matplotlib.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

OURS = "#1f6f8b"
THEIRS = "#b8c4cc"
INK = "#22313a"


def plot_bars(
    path: Path,
    title: str,
    values: Mapping[str, float],
    *,
    unit: str = "rollouts/s",
    highlight: str = "rollmq",
) -> None:
    """Draw one horizontal bar a value, largest on top, to `path` (format by its suffix).

    Names that start with `highlight` are coloured as ours.

    Raises:
        ValueError: there are no values, or the suffix is no image format.
        OSError: the file cannot be written.

    """
    if not values:
        raise ValueError(f"nothing to plot for {title!r}")
    ordered = sorted(values.items(), key=lambda item: item[1])
    figure = Figure(figsize=(8, 0.9 + 0.48 * len(ordered)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = [OURS if name.startswith(highlight) else THEIRS for name, _ in ordered]
    bars = axes.barh([name for name, _ in ordered], [v for _, v in ordered], 0.66, color=colours)
    labels = [f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for _, value in ordered]
    axes.bar_label(bars, labels, padding=5, color=INK, fontsize=10)
    _tidy(axes, title, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


def plot_lines(
    path: Path,
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    highlight: tuple[str, ...],
    mark: tuple[str, float],
) -> None:
    """Draw a line for each name through its (x, y) points, to `path` (format by its suffix).

    Names in `highlight` are coloured as ours; `mark` is a word and the x at which it stands.

    Raises:
        ValueError: there are no lines, or the suffix is no image format.
        OSError: the file cannot be written.

    """
    if not lines:
        raise ValueError(f"nothing to plot for {title!r}")
    figure = Figure(figsize=(8, 4.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        is_ours = name in highlight
        style = ("-", "--", "-.", ":")[number % 4]
        colour, width = (OURS, 2.4) if is_ours else (INK, 1.2)
        axes.plot(*zip(*points, strict=True), style, color=colour, lw=width, label=name)
    axes.axvline(mark[1], color=THEIRS, lw=1, zorder=0)
    axes.annotate(mark[0], (mark[1], 0), xytext=(4, 4), textcoords="offset points", color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", pad=10)
    axes.set_xlabel(x_label, color=INK, fontsize=9, loc="left")
    axes.set_ylabel(y_label, color=INK, fontsize=9)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


def _tidy(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold", pad=10)
    axes.set_xlabel(unit, color=INK, fontsize=9, loc="left")
    axes.margins(x=0.12)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(THEIRS)
    axes.tick_params(axis="y", length=0, colors=INK, labelsize=10)
    axes.set_xticks([])

"""Recall over simulated time as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from twotower.errors import MissingExtra

__all__ = ["plot_recall"]


def plot_recall(
    path: Path,
    starts_ms: Sequence[int],
    series: Mapping[str, Sequence[float | None]],
    *,
    k: int,
    time_zone: str,
    title: str,
) -> None:
    """Draw a line a strategy into the PNG file `path`.

    Args:
        path: written whole, or replaced.
        starts_ms: when each stretch of time begins.
        series: recall of each stretch by strategy; None where nothing was scored.
        k: of the recall.
        time_zone: of the axis.
        title: above the picture.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.dates import ConciseDateFormatter
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", "drawing recall over time") from error
    zone = ZoneInfo(time_zone)
    times = [datetime.fromtimestamp(start / 1000, zone) for start in starts_ms]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, values in series.items():
        found = [float("nan") if value is None else value for value in values]
        axes.plot(times, found, label=name.replace("_", " "), linewidth=1.4)  # type: ignore[arg-type]
    formatter = ConciseDateFormatter(axes.xaxis.get_major_locator(), tz=zone)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    axes.set_ylabel(f"recall@{k} of clicks")
    axes.set_title(title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=110, metadata={"Software": None})

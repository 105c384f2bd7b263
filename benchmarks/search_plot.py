"""Recall against queries a second as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["plot_curves"]


def plot_curves(path: Path, curves: Sequence[dict[str, Any]]) -> None:
    """Draw a panel a set and size, a line an engine, into the PNG file `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in curves if "left_out" not in row]
    panels = sorted({(row["items"], row["set"]) for row in rows})
    engines = sorted({row["engine"] for row in rows})
    figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (items, name) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for place, engine in enumerate(engines):
            line = sorted(
                (row["ann_recall"], row["queries_per_s"])
                for row in rows
                if (row["items"], row["set"], row["engine"]) == (items, name, engine)
            )
            recall, speed = [point[0] for point in line], [point[1] for point in line]
            axes.plot(recall, speed, marker="o", markersize=3, label=engine, color=f"C{place}")
        axes.set_xlim(0.8, 1.005)
        axes.set_yscale("log")
        axes.set_xlabel("recall@100 against exact")
        axes.set_title(f"{name}, {items:,} items", fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("queries/s of a batch, one thread")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": None})

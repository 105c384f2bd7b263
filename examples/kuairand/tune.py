"""Make the tuning tables again: 26 April to 1 May only; the test days are not touched.

    make tune

One change at a time around the committed settings, for the two-towers and for every baseline with
the same care. Writes `tuning/*.json` and `tuning/README.md`; about 20 minutes on 2 cores. What is
there already is not run again, so a stopped run goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import score
from rich.console import Console

from twotower.baselines import (
    AlsPopularitySettings,
    AlsSettings,
    ItemToItemSettings,
    als,
    als_popularity,
    fit_als,
    item_to_item,
    popularity_decayed,
)
from twotower.data.days import ImportedData
from twotower.data.importing import import_tables
from twotower.evaluation import Scorer, evaluate, mean_over_days
from twotower.replay import ReplayedDay, ReplayedLog

FOLDER: Final = score.HERE / "tuning"

console = Console(highlight=False)


def base(**changes: Any) -> dict[str, Any]:
    """Return a change of the base pass."""
    return {"training": {"base": changes}}


def full(**changes: Any) -> dict[str, Any]:
    """Return a change of the nightly pass."""
    return {"training": {"full": changes}}


TWO_TOWER: Final[tuple[dict[str, Any], ...]] = (
    {},
    base(epochs=1),
    base(epochs=2),
    base(table_learning_rate=0.05),
    base(table_learning_rate=0.1),
    full(dense_learning_rate=1e-4),
    full(dense_learning_rate=1e-3),
    full(table_learning_rate=0.1),
    full(uniform=512),
    full(batch_size=256),
    {"training": {"temperature": 0.07}},
    {"training": {"temperature": 0.14}},
    {"training": {"negatives": {"correction": "none"}}},
    {"training": {"frequency": {"learning_rate": 0.05}}},
    {"training": {"id_dropout": {"user": 0.0, "item": 0.0}}},
    {"training": {"id_dropout": {"user": 0.1, "item": 0.1}}},
    {"model": {"id_dim": 32}},
    {"model": {"skip": False}},
    {"model": {"history_pooling": "mean"}},
    {"model": {"history_length": 0}},
)
TWO_TOWER_POPULARITY: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"model": {"popularity": {"weight": 0.5}}},
    {"model": {"popularity": {"weight": 1.0}}},
    {"model": {"popularity": {"half_life_h": 12.0}}},
    {"model": {"popularity": {"half_life_h": 48.0}}},
    {"model": {"popularity": {"smoothing": 0.3}}},
)


def als_grid() -> Iterator[AlsSettings]:
    """Yield the ALS settings that are tried."""
    best = AlsSettings(seen_weight=0, iterations=30)
    for factors in (8, 16, 32, 64):
        for weight in (0.1, 0.2, 0.4, 1.0):
            yield msgspec.structs.replace(best, factors=factors, history_weight=weight)
    for alpha in (10.0, 20.0, 80.0):
        yield msgspec.structs.replace(best, alpha=alpha)
    for regularization in (0.1, 5.0):
        yield msgspec.structs.replace(best, regularization=regularization)
    yield msgspec.structs.replace(best, iterations=8)
    yield msgspec.structs.replace(best, iterations=15)


def main() -> None:
    """Make every table that is not there yet."""
    FOLDER.mkdir(exist_ok=True)
    tables = {
        "two_tower": TWO_TOWER,
        "two_tower_popularity": TWO_TOWER_POPULARITY,
    }
    for name, changes in tables.items():
        tune_model(name, changes)
    tune_baselines()
    write_readme()


def tune_model(name: str, tried: tuple[dict[str, Any], ...]) -> None:
    """Score every change, two processes at a time."""
    path = FOLDER / f"{name}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    missing = [change for change in tried if change not in [row["changes"] for row in rows]]
    with ThreadPoolExecutor(2) as pool:
        for row in pool.map(lambda change: score_change(name, change), missing):
            rows.append(row)
            rows.sort(
                key=lambda row: tried.index(row["changes"]) if row["changes"] in tried else 99
            )
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            console.print(f"{name} {row['changes']}: {row['recall_at_50']:.4f}")


def score_change(name: str, change: dict[str, Any]) -> dict[str, Any]:
    """Train and score one lineage on the tuning days, in a process of its own."""
    first, last = score.TUNING_DAYS
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scored.npz"
        command = [sys.executable, score.__file__, name, "--changes", json.dumps(change)]
        command += ["--first", first, "--last", last, "--out", str(out), "--data-dir", folder]
        subprocess.run(command, check=True)
        models, _ = score.load(out)
    return {"changes": change, **rounded(models[name])}


def rounded(days: score.Days) -> dict[str, float]:
    """Return the mean figures over the days."""
    mean = mean_over_days(list(days.values()))
    return {metric: round(mean[metric], 4) for metric in score.METRICS}


def tune_baselines() -> None:
    """Score every baseline setting on the same days."""
    path = FOLDER / "baselines.json"
    if path.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        project = msgspec.structs.replace(score.variant("two_tower"), data_dir=folder)
        import_tables(project)
        log = ReplayedLog(ImportedData.open(project.data_path))
        scored: dict[str, score.Days] = {}
        for day in log.days(*score.TUNING_DAYS):
            for name, scorer in baselines(day):
                scored.setdefault(name, {})[day.day] = evaluate(day.truth, scorer)
            console.print(f"baselines: {day.day} done")
    rows = [{"changes": name, **rounded(days)} for name, days in scored.items()]
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def baselines(day: ReplayedDay) -> Iterator[tuple[str, Scorer]]:
    """Yield every baseline with every setting, fitted on what is known before the day."""
    known = day.known
    for half_life in (3.0, 6.0, 12.0, 24.0, 48.0):
        yield f"popularity_decayed, {half_life:g} h", popularity_decayed(known, half_life)
    for shrinkage in (1.0, 10.0, 50.0):
        chosen = ItemToItemSettings(shrinkage=shrinkage)
        yield f"item_to_item, shrinkage {shrinkage:g}", item_to_item(known, chosen)
    for settings in als_grid():
        described = (
            f"{settings.factors} factors, history {settings.history_weight:g}, alpha "
            f"{settings.alpha:g}, regularization {settings.regularization:g}, "
            f"{settings.iterations} iterations"
        )
        factors = fit_als(known, settings)
        yield f"als, {described}", als(known, settings, factors)
        for weight in (4.0, 8.0, 12.0):
            mixed = AlsPopularitySettings(als=settings, weight=weight)
            yield f"als_popularity x{weight:g}, {described}", als_popularity(known, mixed, factors)


def write_readme() -> None:
    """Write the tables as one page."""
    lines = [
        "# Tuning tables",
        "",
        "Mean of 26 April to 1 May, one seed, made by `make tune`. `{}` is the committed setting; "
        "every other row",
        "changes what it names. Gaps under about 0.003 are noise.",
    ]
    note = FOLDER / "note.md"
    if note.exists():
        lines += ["", note.read_text(encoding="utf-8").rstrip()]
    for path in sorted(FOLDER.glob("*.json")):
        lines += ["", f"## {path.stem}", "", f"| setting | {' | '.join(score.METRICS)} |"]
        lines.append(f"|---|{'---|' * len(score.METRICS)}")
        for row in json.loads(path.read_text()):
            changes = row["changes"]
            shown = changes if isinstance(changes, str) else f"`{json.dumps(changes)}`"
            figures = " | ".join(f"{row[metric]:.4f}" for metric in score.METRICS)
            lines.append(f"| {shown} | {figures} |")
    (FOLDER / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Literature quality on Gowalla: a cosine two-tower of IDs and history, ranked over all items.

    python benchmarks/bench_quality.py --data DIR --json bench-quality.json

The split that NGCF, LightGCN and BARS-Match report on (`train.txt.gz`, `test.txt.gz`, a user with
his items a line) is not part of this project. All items are ranked for each user, his train items
left out; Recall@20 and NDCG@20 are means over users. A tenth of each user's train pairs is held out
for every choice; the number of epochs is that of the best held-out Recall@20. The test is scored
once a row and seed, by a model of all train pairs and that number of epochs. Every run is a file in
`--runs`, so a stopped benchmark goes on. `--choose` scores the held-out pairs alone; `--quick` is
the main row with one seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parents[1] / "examples" / "kuairand")]

import score  # noqa: E402

from bench_demo import commit  # noqa: E402
from quality_baselines import BASELINES, Baseline, measure_baseline  # noqa: E402
from quality_data import Split, open_split  # noqa: E402
from quality_rows import MAIN, MODEL, ROWS, TRAINING, Row  # noqa: E402
from twotower.checkpoint import Checkpoint  # noqa: E402
from twotower.evaluation import Scorer, evaluate  # noqa: E402
from twotower.model.settings import ModelSettings  # noqa: E402
from twotower.publishing.trainer_vectors import (  # noqa: E402
    trainer_item_vectors,
    trainer_user_vectors,
)
from twotower.training.base_model import train_base_model  # noqa: E402
from twotower.training.settings import TrainingSettings  # noqa: E402

SEEDS: Final = (0, 1, 2)
LOOK_EVERY: Final = 2
"""Epochs between two looks at the held-out pairs."""
PATIENCE: Final = 3
"""Looks without a better figure after which a choice ends."""
METRICS: Final = ("recall_at_20", "ndcg_at_20")
HEADINGS: Final = (
    "row", "held out: Recall@20", "NDCG@20", "epochs", "test: Recall@20", "NDCG@20", "seeds", "s",
)  # fmt: skip

console = Console(highlight=False)


class Recipe(NamedTuple):
    """The settings of a run."""

    model: ModelSettings
    training: TrainingSettings


def main() -> None:
    """Run what is missing, print one table, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("quality-runs"))
    parser.add_argument("--quick", action="store_true", help="the main row, one seed")
    parser.add_argument("--choose", action="store_true", help="leave the test alone")
    all_names = [row.name for row in (*ROWS, *BASELINES)]
    parser.add_argument("--rows", nargs="+", choices=all_names)
    arguments = parser.parse_args()
    names = [MAIN] if arguments.quick else arguments.rows or all_names
    seeds = () if arguments.choose else SEEDS[:1] if arguments.quick else SEEDS
    arguments.runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.data, Path(folder), arguments.runs)
        found = [bench.measure(row, seeds) for row in ROWS if row.name in names]
        found += [
            bench.measure_baseline(row, is_tested=bool(seeds))
            for row in BASELINES
            if row.name in names
        ]
    report = {
        "gowalla": next((row["test"] for row in found if row["row"] == MAIN), None),
        "parameters": {"seeds": list(seeds), "look_every": LOOK_EVERY, "patience": PATIENCE},
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "commit": commit(),
        "rows": found,
        "left_out": "all rows but the main one: --quick" if arguments.quick else None,
    }
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


class Bench:
    """Fits rows; what was fitted before is read."""

    def __init__(self, source: Path, work: Path, runs: Path) -> None:
        self._source, self._work, self._runs = source, work, runs

    def measure(self, row: Row, seeds: Sequence[int]) -> dict[str, Any]:
        """Return a row's choice on the held-out pairs and the test figures of each seed."""
        chosen = self._run(row, "validation", 0, 0)
        runs = [self._run(row, "test", seed, chosen["epochs"]) for seed in seeds]
        return {"row": row.name, "held_out": chosen, "test": summary(runs) if runs else None}

    def measure_baseline(self, row: Baseline, *, is_tested: bool) -> dict[str, Any]:
        """Return an opponent's best setting on the held-out pairs, and its test figures."""
        held_out = [self._fit_baseline(row, one, "validation") for one in range(len(row.grid))]
        best = max(range(len(held_out)), key=lambda one: float(held_out[one]["recall_at_20"]))
        test = summary([self._fit_baseline(row, best, "test")]) if is_tested else None
        return {"row": row.name, "held_out": held_out[best], "grid": held_out, "test": test}

    def _fit_baseline(self, row: Baseline, place: int, name: str) -> dict[str, Any]:
        settings = row.grid[place]
        said = msgspec.to_builtins(settings)

        def found() -> dict[str, Any]:
            split = open_split(self._source, self._work, name)
            return {"settings": said, **measure_baseline(split, settings)}

        return self._kept(f"{name}-{row.name.split()[0]}-{digest_of(said)}", found)

    def _run(self, row: Row, name: str, seed: int, epochs: int) -> dict[str, Any]:
        """Return the figures of one fit; 0 epochs: as many as the asked pairs want."""
        recipe = recipe_of(row, seed, epochs)

        def found() -> dict[str, Any]:
            split = open_split(self._source, self._work, name)
            return {"row": row.name, **fit(split, recipe, choose=not epochs)}

        return self._kept(f"{name}-{seed}-{digest_of(recipe)}", found)

    def _kept(self, name: str, found: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what the file of that name holds, and have it found first where there is none."""
        path = self._runs / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(found()) + "\n", encoding="utf-8")
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return run


def digest_of(settings: object) -> str:
    """Return a short name of some settings."""
    return hashlib.blake2b(msgspec.json.encode(settings), digest_size=6).hexdigest()


def recipe_of(row: Row, seed: int, epochs: int) -> Recipe:
    """Return the recipe with a row's changes; 0 epochs leave the largest number."""
    changes = {"seed": seed, **({"base": {"epochs": epochs}} if epochs else {})}
    model = score.with_changes(MODEL, row.model)
    training = score.with_changes(score.with_changes(TRAINING, row.training), changes)
    return Recipe(model, training)


def fit(split: Split, recipe: Recipe, *, choose: bool) -> dict[str, Any]:
    """Train on a split's history; return the figures of the best look, or of the last epoch."""
    looks: list[dict[str, Any]] = []
    began = time.perf_counter()

    def look(state: Checkpoint, epoch: int) -> bool:
        if choose and epoch % LOOK_EVERY:
            return True
        if not choose and epoch < recipe.training.base.epochs:
            return True
        seconds = round(time.perf_counter() - began, 1)
        looks.append({"epochs": epoch, "seconds": seconds, **figures(split, state)})
        console.print(looks[-1])
        best = max(range(len(looks)), key=lambda place: looks[place]["recall_at_20"])
        return len(looks) - 1 - best < PATIENCE

    train_base_model(
        split.log.data,
        users=None,
        items=split.project.items,
        model=recipe.model,
        training=recipe.training,
        after_epoch=look,
    )
    return max(looks, key=lambda one: float(one["recall_at_20"])) | {"looks": looks}


def figures(split: Split, state: Checkpoint) -> dict[str, float]:
    """Return Recall@20 and NDCG@20 over the users that are asked about."""
    means = evaluate(split.day.truth, scorer(split, state), ks=(20,)).means()
    return {metric: means[metric] for metric in METRICS}


def scorer(split: Split, state: Checkpoint) -> Scorer:
    """Return the cosines of the trainer's own vectors, over the log's positions."""
    users = state.users.positions(split.log.users.decode(np.arange(len(split.log.users))))
    items = state.items.positions(split.log.items.decode(np.arange(len(split.log.items))))
    vectors = trainer_item_vectors(state, items).T

    def cosines(asked: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return trainer_user_vectors(state, users[asked]) @ vectors

    return cosines


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return means over seeds and each seed's figures."""
    return {
        **{metric: float(np.mean([run[metric] for run in runs])) for metric in METRICS},
        "seconds": float(np.mean([run["seconds"] for run in runs])),
        "over_seeds": [[run[metric] for metric in METRICS] for run in runs],
    }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="Gowalla")
    for heading in HEADINGS:
        table.add_column(heading)
    for row in rows:
        held_out, test = row["held_out"], row["test"]
        cells = [f"{held_out[metric]:.4f}" for metric in METRICS]
        tested = [f"{test[metric]:.4f}" for metric in METRICS] if test else ["-", "-"]
        last = [str(len(test["over_seeds"])), f"{test['seconds']:.0f}"] if test else ["-", "-"]
        table.add_row(row["row"], *cells, str(held_out["epochs"]), *tested, *last)
    console.print(table)


if __name__ == "__main__":
    main()

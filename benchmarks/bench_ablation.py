"""What each part of the recipe is worth on KuaiRand-Pure: one change at a time, over seeds.

    python benchmarks/bench_ablation.py --json bench-ablation.json --runs ablation-runs

Every row is the demo's pure cosine two-tower with what the row names changed, trained night by
night and scored on test days (2 to 4 May unless `--last` says otherwise). No choice is made here:
the settings were chosen on 26 April to 1 May. Rows that change the nights alone share the base
model of their seed. Each run is a file in `--runs`, so a stopped benchmark goes on; seeds come one
after the other, so what is there is a whole table of fewer seeds. `--quick` is one seed and 2 May.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

EXAMPLE: Final = Path(__file__).parents[1] / "examples" / "kuairand"
sys.path[:0] = [str(EXAMPLE), str(Path(__file__).parent)]

import score  # noqa: E402

from bench_demo import commit  # noqa: E402
from twotower.config import Project  # noqa: E402
from twotower.data.days import ImportedData  # noqa: E402
from twotower.evaluation import evaluate, mean_over_days  # noqa: E402
from twotower.nightly import run_night, start_lineage  # noqa: E402
from twotower.publishing.store import ModelStore  # noqa: E402
from twotower.replay import (  # noqa: E402
    ReplayedLog,
    generation_scorer,
    replay_nights,
)

FIRST: Final = score.TEST_DAYS[0]
LAST: Final = "2022-05-04"
SEEDS: Final = (0, 1, 2)
CENTRE: Final = "centre"

HEADINGS: Final = (
    "row", "factor", "Recall@20", "Recall@50", "over seeds", "against the centre", "seeds",
)  # fmt: skip

console = Console(highlight=False)


UNJUDGED: Final = {
    "publishing": {
        "gates": {
            "max_mean_cosine": 1.0,
            "max_mean_user_cosine": 1.0,
            "min_recognised": 0.0,
            "max_coverage_loss": 1.0,
            "max_recall_loss": 1.0,
        }
    }
}
"""A row is measured, not judged: only the gates that stand for a broken model stay."""


class Row(NamedTuple):
    """One line of the table."""

    name: str
    factor: str
    changes: Mapping[str, Any] = {}
    shares_base: bool = False
    """Whether the change touches the nights alone."""
    from_scratch: bool = False
    """Train every night from the base model on, over all days so far, and not from the parent."""


def negatives(**changes: Any) -> dict[str, Any]:
    """Return a change of the negatives."""
    return {"training": {"negatives": changes}}


def mined(share: float) -> dict[str, Any]:
    """Return a change to mined hard negatives; the log has no stages."""
    return negatives(hard={"source": "mined", "share": share})


def passes(**changes: Any) -> dict[str, Any]:
    """Return a change of both passes."""
    return {"training": {"base": changes, "full": changes}}


def dropout(share: float) -> dict[str, Any]:
    """Return a change of the share of hidden IDs."""
    return {"training": {"id_dropout": {"user": share, "item": share}}}


ROWS: Final = (
    Row(CENTRE, "the demo's two-tower, pure cosine"),
    Row("logq-none", "logQ", negatives(correction="none")),
    Row("popularity", "popularity coordinate", score.VARIANTS["two_tower_popularity"]),
    Row("uniform-0", "negatives", passes(uniform=0)),
    Row("hard-1", "hard negatives", mined(0.01), shares_base=True),
    Row("hard-5", "hard negatives", mined(0.05), shares_base=True),
    Row("hard-20", "hard negatives", mined(0.2), shares_base=True),
    Row(
        "shown",
        "shown, not clicked",
        negatives(shown={"weight": 0.1, "share": 0.01}),
        shares_base=True,
    ),
    Row(
        "shown-20",
        "shown, not clicked",
        negatives(shown={"weight": 1.0, "share": 0.2}),
        shares_base=True,
    ),
    Row("two-epochs", "epochs a night", {"training": {"full": {"epochs": 2}}}, shares_base=True),
    Row("from-scratch", "warm start", shares_base=True, from_scratch=True),
    Row("known-kept", "known positives", negatives(exclude_known=False)),
    Row("no-user-features", "user features", {"users": None}),
    Row("history-mean", "history pooling", {"model": {"history_pooling": "mean"}}),
    Row("history-none", "history pooling", {"model": {"history_length": 0}}),
    Row("dropout-0", "ID dropout", dropout(0.0)),
    Row("dropout-10", "ID dropout", dropout(0.1)),
    Row("temperature-05", "temperature", {"training": {"temperature": 0.05}}),
    Row("temperature-20", "temperature", {"training": {"temperature": 0.2}}),
    Row("in-batch-off", "negatives", negatives(in_batch=False)),
    Row("logq-per-source", "logQ", negatives(correction="per_source")),
)
"""In the order of running: where time runs out, the last ones have fewer seeds."""


def main() -> None:
    """Score what is missing, print one table, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("ablation-runs"))
    parser.add_argument("--quick", action="store_true", help="one seed, one day")
    parser.add_argument("--last", default=LAST, help="last day to score")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS])
    parser.add_argument("--markdown", type=Path, help="write the table of docs/ablation.md there")
    parser.add_argument("--only-report", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    last = FIRST if arguments.quick else arguments.last
    rows = [row for row in ROWS if not arguments.rows or row.name in (*arguments.rows, CENTRE)]
    for seed in () if arguments.only_report else seeds:
        with tempfile.TemporaryDirectory() as folder:
            for row in rows:
                run(row, seed, last, arguments.runs, Path(folder))
    report = {
        "parameters": {"seeds": list(seeds), "days": [FIRST, last]},
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "commit": commit(),
        "rows": list(report_rows(rows, seeds, last, arguments.runs)),
    }
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(report), encoding="utf-8")


def run(row: Row, seed: int, last: str, runs: Path, scratch: Path) -> None:
    """Train and score one row with one seed, unless it was before; bases are kept in `scratch`."""
    out = path_of(row, seed, last, runs)
    if out.exists():
        return
    runs.mkdir(parents=True, exist_ok=True)
    project = project_of(row, seed)
    folder = scratch / "lineage"
    if row.shares_base or row.name == CENTRE:
        shutil.copytree(shared_base(seed, scratch), folder)
    else:
        start(project, folder)
    days = score_nights(row, msgspec.structs.replace(project, data_dir=str(folder)), last)
    score.save(out, {row.name: days}, [])
    shutil.rmtree(folder)
    figure = mean_over_days(list(days.values()))["recall_at_50"]
    console.print(f"{row.name}, seed {seed}: Recall@50 {figure:.4f}")


def project_of(row: Row, seed: int) -> Project:
    """Return the demo's project with the row's changes, one thread."""
    project: Project = score.variant("two_tower", seed=seed)
    for change in (UNJUDGED, row.changes):
        project = score.with_changes(project, change)
    return project


def path_of(row: Row, seed: int, last: str, runs: Path) -> Path:
    """Return where a run is kept: another setting is another file."""
    project = project_of(row, seed)
    parts = (project.model, project.training, project.users, project.items, last, row.from_scratch)
    digest = hashlib.blake2b(msgspec.json.encode(parts), digest_size=4).hexdigest()
    return runs / f"{row.name}-{seed}-{digest}.npz"


def shared_base(seed: int, scratch: Path) -> Path:
    """Return the folder of an import with the centre's base model live."""
    folder = scratch / f"base-{seed}"
    if not folder.exists():
        start(project_of(ROWS[0], seed), folder)
    return folder


def start(project: Project, folder: Path) -> None:
    """Import the log into a new folder and make a base model live there."""
    project = msgspec.structs.replace(project, data_dir=str(folder))
    score.fresh_import(project)
    start_lineage(project)


def score_nights(row: Row, project: Project, last: str) -> score.Days:
    """Return the test days' figures, each predicted by what was trained before it."""
    log = ReplayedLog(ImportedData.open(project.data_path))
    if row.from_scratch:
        return retrained(project, log, last)
    nights = replay_nights(project, log, FIRST, last)
    return {night.day.day: night.evaluation for night in nights}


def retrained(project: Project, log: ReplayedLog, last: str) -> score.Days:
    """Score models that each night trains anew: the base model, then all days so far, shuffled.

    The base model is a function of the history and the seed, so starting from the one that is
    there is training it again.
    """
    store, figures = ModelStore(project.data_path), {}
    base = store.open(verify=False).name
    nights = log.data.days
    for day in log.days(FIRST, last):
        store.activate(base)
        run_night(project, nights[nights.index(day.day) - 1])
        figures[day.day] = evaluate(day.truth, generation_scorer(store.open(), log))
    return figures


def report_rows(
    rows: Sequence[Row], seeds: Sequence[int], last: str, runs: Path
) -> Iterator[dict[str, Any]]:
    """Yield the figures of every row that has a run."""
    centre = load_means(ROWS[0], seeds, last, runs)
    for row in rows:
        means = load_means(row, seeds, last, runs)
        if not means:
            continue
        both = [seed for seed in means if seed in centre]
        yield {
            "name": row.name,
            "factor": row.factor,
            "changes": row.changes,
            "seeds": list(means),
            **{
                metric: float(np.mean([mean[metric] for mean in means.values()]))
                for metric in score.METRICS
            },
            "recall_at_50_over_seeds": [mean["recall_at_50"] for mean in means.values()],
            "differences": [
                means[seed]["recall_at_50"] - centre[seed]["recall_at_50"] for seed in both
            ],
        }


def load_means(
    row: Row, seeds: Sequence[int], last: str, runs: Path
) -> dict[int, dict[str, float]]:
    """Return the mean figures over the days, by seed, of the runs that are there."""
    paths = {seed: path_of(row, seed, last, runs) for seed in seeds}
    return {
        seed: mean_over_days(list(score.load(path)[0][row.name].values()))
        for seed, path in paths.items()
        if path.exists()
    }


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return a row of the table as text."""
    values, differences = row["recall_at_50_over_seeds"], row["differences"]
    spread = f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else "one seed"
    against = f"{np.mean(differences):+.4f}" if differences else "-"
    return [
        row["name"],
        row["factor"],
        f"{row['recall_at_20']:.4f}",
        f"{row['recall_at_50']:.4f}",
        spread,
        "-" if row["name"] == CENTRE else against,
        str(len(values)),
    ]


def show(report: Mapping[str, Any]) -> None:
    """Print the table."""
    first, last = report["parameters"]["days"]
    table = Table(title=f"KuaiRand-Pure, {first} to {last}", caption=f"commit {report['commit']}")
    for heading in HEADINGS:
        table.add_column(heading)
    for row in report["rows"]:
        table.add_row(*cells(row))
    console.print(table)


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table for a document."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(cells(row) for row in report["rows"])]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()

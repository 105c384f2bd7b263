"""Could one do only increments? Strategies over the same clicks in simulated time, on two logs.

    python benchmarks/bench_replay.py --json bench-replay.json
    python benchmarks/bench_replay.py --data clicks_days_1_to_8.csv.gz --json bench-replay.json

KuaiRand-Pure comes with the project; `--data` adds the news of Globo.com, which do not. The three
strategies run with three seeds (`--quick`: one, and a tenth of the users asked), then one factor at
a time around the default. Every run is saved in `--work`, so that a stopped benchmark goes on where
it was. About 25 minutes a log on one thread, 3 with `--quick`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from replay_dense import DenseStudy
from replay_logs import Configuration, Log, globo, kuairand, score
from replay_orders import ORDERS, score_orders
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.data.importing import import_tables
from twotower.data.schema import BoolArray
from twotower.increments import begin_update
from twotower.metrics import bootstrap_interval, paired_bootstrap
from twotower.nightly import run_night
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore
from twotower.replay import ReplayedLog
from twotower.replay.comparison import describe, quantiles_s
from twotower.replay.lists import decayed_list, hours_list, previous_day_list
from twotower.replay.live import LiveScores, replay_live
from twotower.replay.served import ServedVectors
from twotower.replay.stream import LiveStream, open_stream

LISTS: Final = ("popularity_previous_day", "popularity_hours", "own popularity alone")
REFERENCE: Final = "full_only"
DEFAULT: Final = "full_and_increments"


class Bench:
    """One log: its stream, the lineages of nights, and what was scored already."""

    def __init__(self, log: Log, work: Path, share: float) -> None:
        self.log, self.work, self.share = log, work / log.name, share
        self.work.mkdir(parents=True, exist_ok=True)
        project = log.lineage("", 0, self.work / "import")
        if not (project.data_path / "imported").is_dir():
            import_tables(project)
        self.replayed = ReplayedLog(ImportedData.open(project.data_path))
        self.stream = open_stream(self.replayed, log.first, log.last, project.model.history_length)
        self.is_asked = self.asks(self.stream)

    def asks(self, stream: LiveStream) -> BoolArray:
        """Return which questions of a stream are asked: those of the chosen users."""
        chosen = np.random.default_rng(0).random(len(self.replayed.users)) < self.share
        asked: BoolArray = chosen[stream.questions.user]
        return asked

    def lineage(self, variant: str, seed: int) -> tuple[Project, list[Generation]]:
        """Return a lineage's project and its generations, the base first; train what is missing."""
        project = self.log.lineage(variant, seed, self.work / f"nights-{variant}{seed}")
        link_import(self.work / "import", project.data_path)
        store, days = ModelStore(project.data_path), self.replayed.data.days
        live = store.open(verify=False).manifest.window.through_day if store.live() else None
        for day in days:
            if (live or "") < day < self.stream.days[-1]:
                run_night(project, day)
        through = (days[days.index(self.stream.days[0]) - 1], *self.stream.days[:-1])
        manifests = [(name, store.open(name, verify=False).manifest) for name in store.names()]
        by_day = {manifest.window.through_day: name for name, manifest in manifests}
        return project, [store.open(by_day[day], verify=False) for day in through]

    def scores(self, name: str, seed: int) -> tuple[LiveScores, float]:
        """Return a run's scores and its seconds, from its file where it was run before."""
        path = self.work / f"{name.replace(' ', '_').replace(',', '')}-{seed}-{self.share:g}.npz"
        if path.exists():
            with np.load(path) as saved:
                found = LiveScores(
                    saved["question"], saved["rank"], saved["freshness_s"], int(saved["deltas"])
                )
                return found, float(saved["seconds"])
        began = time.perf_counter()
        found = self._run(name, seed)
        seconds = time.perf_counter() - began
        writing = path.with_suffix(".writing.npz")
        np.savez(
            writing,
            question=found.question,
            rank=found.rank,
            freshness_s=found.freshness_s,
            deltas=found.deltas_published,
            seconds=seconds,
        )
        writing.rename(path)
        return found, seconds

    def _run(self, name: str, seed: int) -> LiveScores:
        log, stream = self.log, self.stream
        refresh_s = log.configurations[DEFAULT].strategy.publish_every_s
        if name == "popularity_previous_day":
            return previous_day_list(self.replayed, stream, is_asked=self.is_asked)
        if name == "popularity_hours":
            return hours_list(
                self.replayed,
                stream,
                window_s=log.popularity_window_s,
                refresh_s=refresh_s,
                is_asked=self.is_asked,
            )
        if name == "own popularity alone":
            return decayed_list(
                self.replayed,
                stream,
                log.own_popularity,
                refresh_s=refresh_s,
                is_asked=self.is_asked,
            )
        return self._live(log.configurations[name], seed)

    def _live(self, configuration: Configuration, seed: int) -> LiveScores:
        project, generations = self.lineage(configuration.variant, seed)
        project = score.with_changes(project, {"increment": configuration.increment})
        study = DenseStudy(project)
        is_dense = configuration.learns_all
        return replay_live(
            self.replayed,
            self.stream,
            generations,
            configuration.strategy,
            study.make_learner if is_dense else partial(begin_update, project),
            join=project.join,
            is_asked=self.is_asked,
            make_served=study.make_served if is_dense else ServedVectors,
        )


def link_import(source: Path, target: Path) -> None:
    """Let several lineages read one import."""
    target.mkdir(parents=True, exist_ok=True)
    if not (target / "imported").exists():
        (target / "imported").symlink_to((source / "imported").resolve())


def main() -> None:
    """Replay every log, print its tables, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one seed, a tenth of the users")
    parser.add_argument("--data", type=Path, help="the CSV file of Globo.com's clicks")
    parser.add_argument("--only-data", action="store_true", help="leave KuaiRand out")
    parser.add_argument("--share", type=float, default=1.0, help="of the users that are asked")
    parser.add_argument("--work", type=Path, help="where runs are saved; a new folder if left out")
    arguments = parser.parse_args()
    logs = [] if arguments.only_data else [kuairand()]
    logs += [globo(arguments.data)] if arguments.data else []
    seeds = (0,) if arguments.quick else (0, 1, 2)
    share = 0.1 if arguments.quick else arguments.share
    report: dict[str, Any] = {
        "parameters": {"seeds": list(seeds), "share_of_users": share},
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "commit": commit(),
        "left_out": None if arguments.data else "globo-news: no --data",
        "logs": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for log in logs:
            bench = Bench(log, arguments.work or Path(folder), share)
            report["logs"][log.name] = measure(bench, seeds)
            show(log.name, report["logs"][log.name])
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(bench: Bench, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Run everything on one log; return its figures."""
    configurations = bench.log.configurations
    runs: dict[str, list[LiveScores]] = {}
    seconds: dict[str, float] = {}
    order = [*LISTS, *configurations]
    for seed in seeds:
        for name in order:
            if seed and (name in LISTS or not configurations[name].over_seeds):
                continue
            scores, took = bench.scores(name, seed)
            runs.setdefault(name, []).append(scores)
            seconds[name] = seconds.get(name, 0.0) + took
            Console(stderr=True).print(f"{bench.log.name}: {name}, seed {seed}: {took:.0f} s")
    reference = runs[REFERENCE][0]
    compared_with = ("own popularity alone", "popularity_hours", DEFAULT)
    return {
        "days": list(bench.stream.days),
        "clicks": len(reference.question),
        "clicks_seen_before": int((~bench.stream.questions.is_scored & bench.is_asked).sum()),
        "configurations": {
            name: {
                **figures(bench.stream, found),
                "less": {
                    other: differences(bench.stream, found, runs[other])
                    for other in (REFERENCE, *compared_with)
                    if other != name
                },
                "settings": described(configurations.get(name)),
                "seconds": round(seconds[name], 1),
            }
            for name, found in runs.items()
        },
        "orders": score_orders(bench, seeds),
        "seconds": round(sum(seconds.values()), 1),
    }


def described(configuration: Configuration | None) -> dict[str, Any] | None:
    """Return what was run, as plain values."""
    if configuration is None:
        return None
    strategy: dict[str, Any] = msgspec.to_builtins(configuration.strategy)
    more = {"learns_all": True} if configuration.learns_all else {}
    return strategy | {"increment": dict(configuration.increment)} | more


def figures(stream: LiveStream, found: list[LiveScores]) -> dict[str, Any]:
    """Return means over seeds, and the first seed's interval and freshness."""
    users = stream.questions.user[found[0].question]
    hits = (found[0].rank < 50).astype(np.float64)
    interval = bootstrap_interval(hits, users, seed=0)
    return {
        **{
            f"recall_at_{k}": float(np.mean([(scores.rank < k).mean() for scores in found]))
            for k in (20, 50)
        },
        "recall_at_50_over_seeds": [float((scores.rank < 50).mean()) for scores in found],
        "interval_at_50": [interval.low, interval.high],
        "freshness_s": quantiles_s(found[0]),
        "deltas_published": found[0].deltas_published,
    }


def differences(
    stream: LiveStream, ours: list[LiveScores], theirs: list[LiveScores]
) -> dict[str, Any]:
    """Return the paired difference a seed and, over the seeds that both have, its interval."""
    pairs = list(zip(ours, theirs * (len(ours) if len(theirs) == 1 else 1), strict=False))
    users = stream.questions.user[ours[0].question]
    found = {}
    for k in (20, 50):
        first = np.mean([scores.rank < k for scores, _ in pairs], axis=0)
        second = np.mean([scores.rank < k for _, scores in pairs], axis=0)
        interval = paired_bootstrap(first, second, users, seed=0)
        found[f"at_{k}"] = {
            "difference": interval.estimate,
            "interval": [interval.low, interval.high],
            "reading": describe(interval),
            "seeds": len(pairs),
        }
    return found


def show(name: str, found: Mapping[str, Any]) -> None:
    """Print one log's tables."""
    console = Console(highlight=False, width=150)
    table = Table(title=f"{name}, {found['clicks']:,} clicks, {found['seconds']:,.0f} s in all")
    headings = ("", "recall@20", "recall@50", "@50 less full_only", "@20 less own popularity", "s")
    for heading in headings:
        table.add_column(heading, justify="left" if not heading else "right")
    for label, row in found["configurations"].items():
        less = row["less"]
        table.add_row(
            label,
            f"{row['recall_at_20']:.4f}",
            f"{row['recall_at_50']:.4f}",
            less.get(REFERENCE, {}).get("at_50", {}).get("reading", ""),
            less.get("own popularity alone", {}).get("at_20", {}).get("reading", ""),
            f"{row['seconds']:.0f}",
        )
    console.print(table)
    table = Table(title="one epoch of one day from the same start, scored on the day after it")
    for heading in ("order of the day", "recall@50", "seeds", "less shuffled"):
        table.add_column(heading)
    for order in ORDERS:
        row = found["orders"][order]
        seeds = ", ".join(f"{value:.4f}" for value in row["over_seeds"])
        table.add_row(order, f"{row['recall_at_50']:.4f}", seeds, row["reading"])
    console.print(table)


def commit() -> str:
    """Return the commit that was measured."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

"""The demo: a real feed log, learned night after night, published, asked, beside its opponents.

    make demo

Processes share the cores: this one trains the two-tower, lets its live days happen and shows all,
another trains the variants, a third fits the opponents. Writes `demo-report.json` and
`demo-recall.png` in the folder that it is started from.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import live
import msgspec
import numpy as np
import score
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from twotower.cli.gates import gates_table
from twotower.cli.output import configure, show_progress
from twotower.config import Project
from twotower.data.days import ImportedData
from twotower.evaluation import compare_over_days, interval_over_days, mean_over_days
from twotower.index import build_index
from twotower.index.tuning import ann_recall
from twotower.publishing.encoding import Encoder
from twotower.publishing.generation import Generation
from twotower.publishing.store import ModelStore
from twotower.replay import ReplayedLog, replay_nights
from twotower.serving.retriever import Retriever

OTHER_VARIANTS: Final = ("two_tower_popularity", "two_tower_without_user_features")
LISTS_AND_FACTORS: Final = (
    "popularity",
    "popularity_previous_day",
    "popularity_decayed",
    "item_to_item",
    "als",
)
NAMES: Final = {
    "two_tower": "two-tower (cosine)",
    "two_tower_popularity": "two-tower + popularity",
    "two_tower_without_user_features": "two-tower, no user features",
    "popularity": "popularity, all days",
    "popularity_previous_day": "popularity, previous day",
    "popularity_decayed": "popularity, 12 h half-life",
    "item_to_item": "item-to-item co-clicks",
    "als": "ALS",
    "als_popularity": "ALS + popularity",
}
HEADINGS: Final = {
    "two_tower": "two-\ntower",
    "two_tower_popularity": "two-t.\n+ pop.",
    "two_tower_without_user_features": "no user\nfeat.",
    "popularity": "pop.\nall",
    "popularity_previous_day": "pop.\nday",
    "popularity_decayed": "pop.\n12 h",
    "item_to_item": "item-\nitem",
    "als": "\nALS",
    "als_popularity": "ALS\n+ pop.",
}
EXAMPLE_USERS: Final = (712, 13414, 6767, 15, 2048)
RETRIEVALS: Final = 500

console = Console(highlight=False)


def main() -> None:
    """Run the demo from import to report."""
    began = time.perf_counter()
    configure(0 if Console(stderr=True).is_terminal else -1)
    project = score.variant("two_tower")
    show_import(project)
    with tempfile.TemporaryDirectory() as folder:
        variants = Worker(OTHER_VARIANTS, Path(folder) / "variants.npz")
        days, manifests, segments = show_nights(project)
        console.print("\nThe live days, beside the opponents' fits on the same days …")
        baselines = Worker(("baselines",), Path(folder) / "baselines.npz")
        live_days = live.replay_live_days(project)
        models = {"two_tower": days, **variants.scores(), **baselines.scores()}
    show_gates(ModelStore(project.data_path).open())
    show_days(models)
    show_summary(models)
    show_segments(segments)
    live.show_live_days(live_days, console)
    live.draw(live_days, project, Path("demo-recall.png"))
    report = {
        **figures(models),
        "segments": segment_figures(segments),
        "train_examples_per_s": train_speed(manifests),
        "generations": [manifest["name"] for manifest in manifests],
        **index_figures(ModelStore(project.data_path).open()),
        "replay": live.figures(live_days),
        "seconds": round(time.perf_counter() - began, 1),
    }
    show_users(project)
    Path("demo-report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show_next_steps(report)


def show_import(project: Project) -> None:
    """Import the log and say what it holds."""
    console.rule("KuaiRand-Pure, 25 April to 8 May 2022: a real short-video feed log")
    report = score.fresh_import(project)
    events = report.events
    console.print(
        f"{events.rows:,} impressions of {events.items:,} videos by {events.users:,} users\n"
        f"on {len(report.days)} days, {events.positives:,} of them clicked."
    )
    for note in report.notes:
        console.print(f"  · {note}")


class Worker:
    """Scores models in a process of its own."""

    def __init__(self, models: Sequence[str], out: Path) -> None:
        self._models = ", ".join(models)
        self._out = out
        command = [sys.executable, score.__file__, *models, "--out", str(out)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE)

    def scores(self) -> dict[str, score.Days]:
        """Wait for the process and return its models' days; stop if it failed."""
        _, errors = self._process.communicate()
        if self._process.returncode:
            raise SystemExit(f"{self._models} could not be scored:\n{errors.decode()}")
        return score.load(self._out)[0]


def show_nights(
    project: Project,
) -> tuple[score.Days, list[dict[str, Any]], dict[str, score.Days]]:
    """Train every night, publish, and predict the next day; a line each."""
    console.print(
        "\nA base model from the history before 25 April, then one shuffled epoch a night. Each"
        "\ngeneration is published whole, then predicts a day that nothing was trained on:\n"
    )
    days: score.Days = {}
    segments: dict[str, score.Days] = {}
    manifests = []
    log = ReplayedLog(ImportedData.open(project.data_path))
    with show_progress() as progress:
        nights = replay_nights(project, log, score.FIRST_DAY, score.LAST_DAY, progress=progress)
        for night in nights:
            manifest = night.generation.manifest
            days[night.day.day] = night.evaluation
            for name, evaluation in night.segments.items():
                segments.setdefault(name, {})[night.day.day] = evaluation
            manifests.append(msgspec.to_builtins(manifest))
            console.print(
                f"  {manifest.name}  {manifest.trained.rows:>6,} clicks of "
                f"{manifest.window.through_day}, loss {manifest.trained.loss:.3f}"
                f"  →  {night.day.day}: Recall@50 "
                f"{night.evaluation.means()['recall_at_50']:.3f}"
            )
    return days, manifests, segments


def show_gates(generation: Generation) -> None:
    """Print what the last generation was judged by before it became live."""
    console.print(f"\nThe gates of {generation.name}, measured on the staged files:")
    console.print(gates_table(generation.manifest, with_details=False))


def show_days(models: Mapping[str, score.Days]) -> None:
    """Print Recall@50 of every model, a row a day."""
    table = Table(
        title="Recall@50 by day; the days below the line took no part in any choice",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("day", no_wrap=True)
    for name in models:
        table.add_column(HEADINGS[name], justify="right", no_wrap=True)
    for day in models["two_tower"]:
        row = [days[day].means()["recall_at_50"] for days in models.values()]
        best = max(row)
        cells = [f"[bold]{value:.3f}[/]" if value == best else f"{value:.3f}" for value in row]
        table.add_row(day, *cells, end_section=day == score.TUNING_DAYS[1])
    console.print()
    console.print(table)


def show_summary(models: Mapping[str, score.Days]) -> None:
    """Print the means over the test days and how the two-towers compare."""
    table = Table(
        title="Mean of 2 to 8 May, all 7,583 videos ranked", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("model", no_wrap=True)
    for heading in ("Recall@20", "Recall@50", "Recall@200", "NDCG@50"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, days in models.items():
        tested = test_days(days)
        mean = mean_over_days(tested)
        interval = interval_over_days(tested, "recall_at_50", seed=0)
        table.add_row(
            NAMES[name],
            f"{mean['recall_at_20']:.4f}",
            f"[bold]{mean['recall_at_50']:.4f}[/] ±{(interval.high - interval.low) / 2:.4f}",
            f"{mean['recall_at_200']:.4f}",
            f"{mean['ndcg_at_50']:.4f}",
        )
    console.print(table)
    console.print("In Recall@50, with 95 % intervals from resampled users:")
    for line in comparisons(models):
        console.print(line)


def show_segments(segments: Mapping[str, score.Days]) -> None:
    """Print how the two-tower does by kind of user, and for items that nobody had clicked."""
    table = Table(
        title="The two-tower by segment, 2 to 8 May", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for heading in ("segment", "user-days", "Recall@50", "Recall@200"):
        table.add_column(heading, justify="left" if heading == "segment" else "right")
    for name, figure in segment_figures(segments).items():
        table.add_row(
            name.replace("_", " "),
            f"{figure['user_days']:,.0f}",
            f"{figure['recall_at_50']:.4f}",
            f"{figure['recall_at_200']:.4f}",
        )
    console.print(table)


def segment_figures(segments: Mapping[str, score.Days]) -> dict[str, dict[str, float]]:
    """Return each segment's figures over all user-days of the test days."""
    figures = {}
    for name, days in segments.items():
        tested = test_days(days)
        pooled = {
            metric: float(np.concatenate([day.values[metric] for day in tested]).mean())
            for metric in score.METRICS
        }
        figures[name] = {"user_days": sum(len(day.users) for day in tested), **pooled}
    return figures


def comparisons(models: Mapping[str, score.Days]) -> list[str]:
    """Return the ratios that the two-towers are judged by, each with its interval."""
    tested = {name: test_days(days) for name, days in models.items()}
    best = max(LISTS_AND_FACTORS, key=lambda name: mean_over_days(tested[name])["recall_at_50"])
    lines = []
    for ours, theirs in (
        ("two_tower", best),
        ("two_tower", "als_popularity"),
        ("two_tower_popularity", "als_popularity"),
    ):
        ratio = compare_over_days(tested[ours], tested[theirs], "recall_at_50", seed=0)
        lines.append(
            f"  {NAMES[ours]} / {NAMES[theirs]}: [bold]{ratio.estimate:.3f}[/] "
            f"({ratio.low:.3f} to {ratio.high:.3f})"
        )
    return lines


def test_days(days: score.Days) -> list[Any]:
    """Return the evaluations of the days that no choice was made on."""
    return [days[day] for day in days if day >= score.TEST_DAYS[0]]


def figures(models: Mapping[str, score.Days]) -> dict[str, Any]:
    """Return the report's figures: the mean over the test days, and every day."""

    def rounded(mean: Mapping[str, float]) -> dict[str, float]:
        return {metric: round(mean[metric], 5) for metric in score.METRICS}

    return {
        "mean": {name: rounded(mean_over_days(test_days(days))) for name, days in models.items()},
        "days": {
            day: {name: rounded(days[day].means()) for name, days in models.items()}
            for day in models["two_tower"]
        },
    }


def train_speed(manifests: list[dict[str, Any]]) -> float:
    """Return the examples a second of the middle night's pass, on one thread."""
    return float(np.median([manifest["trained"]["examples_per_s"] for manifest in manifests]))


def index_figures(generation: Generation) -> dict[str, Any]:
    """Return the ANN recall of approximate engines on the same vectors, and the time of a user."""
    encoder, retriever = Encoder.of(generation), Retriever(generation)
    corpus = np.asarray(generation.array("corpus.npy"))
    items = np.asarray(generation.array("item_vectors.npy"))
    users = np.random.default_rng(0).choice(len(encoder.users), RETRIEVALS, replace=False)
    queries = encoder.user_vectors(users)
    tuning, asked = queries[::2], queries[1::2]
    settings = score.variant("two_tower").index
    exact = build_index("exact", corpus, items, settings).search(asked, 100)
    recalls = {
        engine: round(
            ann_recall(
                build_index(engine, corpus, items, settings, queries=tuning).search(asked, 100),
                exact,
            ),
            4,
        )
        for engine in ("faiss_ivf", "faiss_hnsw")
    }
    times = []
    for user in encoder.users.decode(users):
        began = time.perf_counter()
        retriever.retrieve(user, 100)
        times.append(time.perf_counter() - began)
    return {
        "ann_recall_at_100": recalls,
        "retrieve_p50_ms": round(float(np.median(times)) * 1000, 3),
    }


def show_users(project: Project) -> None:
    """Print what some users clicked and what they get."""
    retriever = Retriever.open(project.data_path)
    console.print()
    for user in EXAMPLE_USERS:
        answer = retriever.retrieve(user, 5)
        table = Table(
            title=f"user {user}, answered by {answer.generation}",
            title_justify="left",
            box=SIMPLE_HEAD,
            width=78,
        )
        table.add_column("recently clicked", ratio=1, no_wrap=True)
        table.add_column("gets", ratio=1, no_wrap=True)
        table.add_column("score", justify="right")
        clicks = [video(click.item_id, click.display) for click in answer.recent[:5]]
        for place, candidate in enumerate(answer.candidates):
            click = clicks[place] if place < len(clicks) else ""
            gets = video(candidate.item_id, candidate.display)
            table.add_row(click, gets, f"{candidate.score:.3f}")
        console.print(table)


def video(item_id: object, display: Mapping[str, Any]) -> str:
    """Return a video in one line; the data set has no titles."""
    seconds = (display.get("video_duration") or 0) / 1000
    tags = ", ".join(display.get("tag") or ["-"])
    return f"{item_id} (tag {tags}; {seconds:.0f} s)"


def show_next_steps(report: Mapping[str, Any]) -> None:
    """Say how long it took and what to try next."""
    console.print(
        f"\n{report['seconds']:.0f} s; nights at {report['train_examples_per_s']:,.0f} examples/s "
        f"on one thread; 100 items retrieved in {report['retrieve_p50_ms']:.2f} ms;\n"
        "ANN recall@100: "
        + ", ".join(f"{name} {value:.3f}" for name, value in report["ann_recall_at_100"].items())
        + ".\nAll figures are in demo-report.json; demo-recall.png draws the live days."
    )
    console.print(
        "\nGo on with:\n"
        "  source .venv/bin/activate && cd examples/kuairand\n"
        "  twotower retrieve --user 712 -k 20\n"
        '  twotower retrieve --user 99999999 --features \'{"onehot_feat1": "3"}\'\n'
        "  twotower generations list\n"
        "  twotower generations roll-back\n"
        "  twotower init my-project.toml    # a log of your own: docs/data-import.md\n"
    )


if __name__ == "__main__":
    main()

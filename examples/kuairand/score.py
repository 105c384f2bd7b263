"""Score one model of the demo on days that it was not trained on, and save every user-day's figure.

    python examples/kuairand/score.py two_tower --out two_tower.npz

The demo, the tuning and the benchmark all run their models through this file.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from twotower.baselines import AlsPopularitySettings, AlsSettings, BaselineSettings
from twotower.config import Project, load_project
from twotower.data.days import ImportedData
from twotower.data.importing import ImportReport, import_tables
from twotower.evaluation import Evaluation
from twotower.progress import SILENT, Progress
from twotower.replay import BASELINES, ReplayedLog, replay_nights, score_baselines

HERE: Final = Path(__file__).parent
METRICS: Final = ("recall_at_20", "recall_at_50", "recall_at_200", "ndcg_at_50")
FIRST_DAY: Final = "2022-04-26"
LAST_DAY: Final = "2022-05-08"
TUNING_DAYS: Final = (FIRST_DAY, "2022-05-01")
TEST_DAYS: Final = ("2022-05-02", LAST_DAY)

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "two_tower": {},
    "two_tower_popularity": {
        "model": {"popularity": {"weight": 0.75}},
        "training": {"negatives": {"correction": "none"}},
    },
    "two_tower_without_user_features": {"users": None},
    "two_tower_shown": {"training": {"base_shown_weight": 1.0, "base": {"epochs": 2}}},
    "two_tower_popularity_shown": {
        "model": {"popularity": {"weight": 0.75}},
        "training": {
            "negatives": {"correction": "none"},
            "base_shown_weight": 1.0,
            "base": {"epochs": 2},
        },
    },
}
"""The last two take what the history only shows as weak positives, as `SHOWN_SETTINGS` does."""

BASELINE_SETTINGS: Final = BaselineSettings(
    als=AlsSettings(factors=32, history_weight=0.4, seen_weight=0, iterations=30),
    als_popularity=AlsPopularitySettings(
        als=AlsSettings(factors=32, history_weight=1.0, seen_weight=0, iterations=30), weight=8.0
    ),
)
"""Chosen on the tuning days; like the two-towers, they take no video as a positive that the history
only shows. What both gain from those is in docs/quality.md."""

SHOWN_SETTINGS: Final = BaselineSettings(
    als=AlsSettings(history_weight=0.4, seen_weight=0.3, iterations=30),
    als_popularity=AlsPopularitySettings(
        als=AlsSettings(history_weight=0.4, seen_weight=0.3, iterations=30), weight=12.0
    ),
)
"""The same with them: both gain, see docs/quality.md."""

BASELINE_GROUPS: Final = {"baselines": BASELINE_SETTINGS, "baselines_shown": SHOWN_SETTINGS}

Days = dict[str, Evaluation]


def variant(name: str, *, seed: int = 0, changes: Mapping[str, Any] | None = None) -> Project:
    """Return the demo's project with a variant's settings and a data folder of its own."""
    project = load_project(HERE / "twotower.toml")
    for change in (VARIANTS[name], changes or {}, {"training": {"seed": seed}}):
        project = with_changes(project, change)
    if name == "two_tower" and not changes and seed == 0:
        return project
    return msgspec.structs.replace(project, data_dir=f"./twotower-data-{name}-{seed}")


def with_changes(struct: Any, changes: Mapping[str, Any]) -> Any:
    """Return the settings with some replaced, named by nested mappings."""
    replaced = {
        name: with_changes(getattr(struct, name), value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return msgspec.structs.replace(struct, **replaced)


def fresh_import(project: Project) -> ImportReport:
    """Import the log into an empty data folder; only an earlier one of ours is removed for it."""
    folder = project.data_path
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "imported").is_dir():
            raise SystemExit(f"{folder} holds something else; name an empty folder")
        shutil.rmtree(folder)
    return import_tables(project)


def score_lineage(
    project: Project, first: str, last: str, progress: Progress = SILENT
) -> tuple[Days, list[dict[str, Any]]]:
    """Train a lineage from its base model on and score every day; return figures and manifests."""
    fresh_import(project)
    log = ReplayedLog(ImportedData.open(project.data_path))
    days: Days = {}
    manifests = []
    for night in replay_nights(project, log, first, last, progress=progress):
        days[night.day.day] = night.evaluation
        manifests.append(msgspec.to_builtins(night.generation.manifest))
    return days, manifests


def score_all_baselines(
    first: str,
    last: str,
    settings: BaselineSettings,
    data_dir: str = "./twotower-data-baselines",
) -> dict[str, Days]:
    """Fit and score every baseline, day by day."""
    project = msgspec.structs.replace(variant("two_tower"), data_dir=data_dir)
    fresh_import(project)
    log = ReplayedLog(ImportedData.open(project.data_path))
    models: dict[str, Days] = {name: {} for name in BASELINES}
    for day in log.days(first, last):
        for name, evaluation in score_baselines(day, settings).items():
            models[name][day.day] = evaluation
    return models


def save(path: Path, models: Mapping[str, Days], manifests: list[dict[str, Any]]) -> None:
    """Write figures of every user-day as plain arrays; read back by `load`."""
    arrays: dict[str, Any] = {"manifests": np.frombuffer(json.dumps(manifests).encode(), np.uint8)}
    for model, days in models.items():
        for day, evaluation in days.items():
            arrays[f"{model}/{day}/users"] = evaluation.users
            for metric, values in evaluation.values.items():
                arrays[f"{model}/{day}/values/{metric}"] = values
            for metric, share in evaluation.coverage.items():
                arrays[f"{model}/{day}/coverage/{metric}"] = np.array(share)
    np.savez(path, **arrays)


def load(path: Path) -> tuple[dict[str, Days], list[dict[str, Any]]]:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    manifests = json.loads(arrays.pop("manifests").tobytes())
    models: dict[str, Days] = {}
    for name, values in arrays.items():
        model, day, kind, *metric = name.split("/")
        days = models.setdefault(model, {})
        evaluation = days.setdefault(day, Evaluation(np.zeros(0, np.int64), {}, {}))
        if kind == "users":
            days[day] = evaluation._replace(users=values)
        elif kind == "values":
            days[day] = evaluation._replace(values={**evaluation.values, metric[0]: values})
        else:
            shares = {**evaluation.coverage, metric[0]: float(values)}
            days[day] = evaluation._replace(coverage=shares)
    return models, manifests


def main() -> None:
    """Score the models that the command line names, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=[*VARIANTS, *BASELINE_GROUPS])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", default=FIRST_DAY)
    parser.add_argument("--last", default=LAST_DAY)
    parser.add_argument("--changes", type=json.loads, default={}, help="settings, as JSON")
    parser.add_argument("--data-dir", help="where to train; a folder beside this file if left out")
    arguments = parser.parse_args()
    scored: dict[str, Days] = {}
    manifests: list[dict[str, Any]] = []
    days = (arguments.first, arguments.last)
    for name in arguments.models:
        if name in BASELINE_GROUPS:
            folder = arguments.data_dir or "./twotower-data-baselines"
            fitted = score_all_baselines(*days, BASELINE_GROUPS[name], folder)
            suffix = name.removeprefix("baselines")
            kept = [model for model in fitted if not suffix or model.startswith("als")]
            scored |= {f"{model}{suffix}": fitted[model] for model in kept}
            continue
        project = variant(name, seed=arguments.seed, changes=arguments.changes)
        if arguments.data_dir:
            project = msgspec.structs.replace(project, data_dir=arguments.data_dir)
        scored[name], made = score_lineage(project, *days)
        manifests += made
    save(arguments.out, scored, manifests)


if __name__ == "__main__":
    main()

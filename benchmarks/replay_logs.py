"""The two logs of the replay benchmark: their projects, their days, what is varied on each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from twotower.config import Project, load_project
from twotower.replay.strategies import LivePopularity, Strategy

EXAMPLES: Final = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES / "kuairand"))

import score  # noqa: E402

__all__ = ["Configuration", "Log", "globo", "kuairand", "score"]

Changes = Mapping[str, Any]


class Configuration(NamedTuple):
    """One way to keep the model fresh: a strategy, and settings that differ from the log's."""

    strategy: Strategy
    increment: Changes
    variant: str = ""
    """Which lineage of nights it stands on."""
    over_seeds: bool = False
    """Run with every seed, not the first alone."""
    learns_all: bool = False
    """Increments move every parameter, not ID rows alone; nothing publishes such increments."""


class Log(NamedTuple):
    """A log, where its live days begin, and what is compared on it."""

    name: str
    project: Project
    variants: Mapping[str, Changes]
    first: str
    last: str
    popularity_window_s: float
    own_popularity: LivePopularity
    configurations: Mapping[str, Configuration]
    ordered_day: str
    """The day that is trained in three orders and scored by the one after it."""

    def lineage(self, variant: str, seed: int, folder: Path) -> Project:
        """Return the project of one lineage of nights, in a folder of its own."""
        changes: Changes = {"training": {"seed": seed, "threads": 1}}
        changed = score.with_changes(self.project, self.variants[variant])
        changed = score.with_changes(changed, changes)
        replaced: Project = msgspec.structs.replace(changed, data_dir=str(folder.resolve()))
        return replaced


def _around(
    default: Strategy, increment: Changes, *, minutes: tuple[float, ...]
) -> dict[str, Configuration]:
    """Return the three strategies, and other publish intervals and rows around the default."""

    def change(**changes: Any) -> Strategy:
        changed: Strategy = msgspec.structs.replace(default, **changes)
        return changed

    return {
        "full_only": Configuration(change(increments=False), increment, over_seeds=True),
        "increments_only": Configuration(change(nights=False), increment, over_seeds=True),
        "full_and_increments": Configuration(default, increment, over_seeds=True),
        **{
            f"publish every {every:g} min": Configuration(
                change(publish_every_s=every * 60), increment
            )
            for every in minutes
        },
        "user rows": Configuration(default, {**increment, "rows": "user"}),
        "increments_only, all parameters": Configuration(
            change(nights=False), increment, learns_all=True
        ),
    }


def kuairand() -> Log:
    """Return KuaiRand-Pure with its seven test days live."""
    default = Strategy(nights=True, increments=True, publish_every_s=1800.0)
    increment = {"rows": "user_and_item"}
    live = LivePopularity(weight=0.75, half_life_h=12.0, smoothing=1.0)

    def popular(**changes: Any) -> Configuration:
        rows = changes.pop("rows", "user_and_item")
        learned = {"popularity": "live"} if changes.pop("live", False) else {}
        strategy = msgspec.structs.replace(default, **changes)
        return Configuration(strategy, {"rows": rows, **learned}, "popularity")

    return Log(
        name="kuairand",
        project=score.variant("two_tower"),
        variants={"": {}, "popularity": score.VARIANTS["two_tower_popularity"]},
        first="2022-05-02",
        last="2022-05-08",
        popularity_window_s=24 * 3600.0,
        own_popularity=live,
        configurations={
            **_around(default, increment, minutes=(5, 120, 1440)),
            "popularity as of the cut, full_only": popular(increments=False),
            "popularity as of the cut, full_and_increments": popular(),
            "live popularity, full_only": popular(increments=False, popularity=live),
            "live popularity, full_and_increments": popular(popularity=live),
            "live popularity, user rows": popular(popularity=live, rows="user"),
            "popularity of the increments": popular(live=True),
            "popularity of the increments, user rows": popular(live=True, rows="user"),
        },
        ordered_day="2022-05-05",
    )


def globo(data: Path) -> Log:
    """Return Globo.com's news with days 5 to 8 live.

    Args:
        data: the CSV file of the clicks; it is not part of this project.
    """
    project = load_project(EXAMPLES / "globo-news" / "twotower.toml")
    project = score.with_changes(project, {"events": {"files": str(data.resolve())}})
    live = LivePopularity(weight=1.0, half_life_h=0.15, smoothing=0.05)
    default = Strategy(nights=True, increments=True, publish_every_s=300.0, popularity=live)

    def cosine(rows: str, **changes: Any) -> Configuration:
        strategy = msgspec.structs.replace(default, popularity=None, **changes)
        return Configuration(strategy, {"rows": rows}, "cosine")

    around = _around(default, {"rows": "user_and_item"}, minutes=(30, 120, 1440))
    without_new = msgspec.structs.replace(default, new_items=False)
    return Log(
        name="globo-news",
        project=project,
        variants={
            "": {},
            "short": {
                "model": {"popularity": {"half_life_h": 0.15, "smoothing": 0.05}},
                "publishing": {"gates": {"max_coverage_loss": 1.0}},
            },
            "cosine": {
                "model": {"popularity": {"weight": 0.0}},
                "training": {"negatives": {"correction": "mixture"}},
                "publishing": {"gates": {"max_coverage_loss": 1.0}},
            },
        },
        first="2017-10-05",
        last="2017-10-08",
        popularity_window_s=3600.0,
        own_popularity=live,
        configurations={
            **around,
            "no new items": Configuration(without_new, {"rows": "user_and_item"}),
            "popularity of the increments": Configuration(
                msgspec.structs.replace(default, popularity=None),
                {"rows": "user_and_item", "popularity": "live"},
                "short",
            ),
            "cosine, full_only": cosine("user", increments=False),
            "cosine, user rows": cosine("user"),
            "cosine, user and item rows": cosine("user_and_item"),
        },
        ordered_day="2017-10-05",
    )

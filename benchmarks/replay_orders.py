"""The lecture's argument alone: the same day from the same start, all parameters, three orders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from replay_logs import score
from twotower.data.schema import BoolArray
from twotower.metrics import paired_bootstrap
from twotower.nightly import run_night
from twotower.publishing.store import ModelStore
from twotower.replay.comparison import describe
from twotower.replay.live import LiveScores, replay_live
from twotower.replay.staging import copy_base
from twotower.replay.strategies import Strategy
from twotower.replay.stream import LiveStream, open_stream

if TYPE_CHECKING:
    from bench_replay import Bench

__all__ = ["ORDERS", "score_orders"]

ORDERS: Final = ("shuffled", "by_time", "by_hour")
FROZEN: Final = Strategy(nights=False, increments=False, publish_every_s=86_400.0, new_items=False)


def score_orders(bench: Bench, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Return, for each order of the trained day, recall on the clicks of the day after it."""
    days = bench.replayed.data.days
    trained = bench.log.ordered_day
    scored = days[days.index(trained) + 1]
    length = bench.log.project.model.history_length
    stream = open_stream(bench.replayed, scored, scored, length)
    is_asked = bench.asks(stream)
    hits = {
        order: [_hits(bench, order, seed, stream, is_asked) for seed in seeds] for order in ORDERS
    }
    asked = stream.questions.user[stream.questions.is_scored & is_asked]
    found: dict[str, Any] = {"trained": trained, "scored": scored}
    for order, by_seed in hits.items():
        less = paired_bootstrap(
            np.mean(by_seed, axis=0), np.mean(hits["shuffled"], axis=0), asked, seed=0
        )
        found[order] = {
            "recall_at_50": float(np.mean(by_seed)),
            "over_seeds": [float(np.mean(one)) for one in by_seed],
            "difference": less.estimate,
            "interval": [less.low, less.high],
            "reading": "the reference" if order == "shuffled" else describe(less),
        }
    return found


def _hits(
    bench: Bench, order: str, seed: int, stream: LiveStream, is_asked: BoolArray
) -> BoolArray:
    path = bench.work / f"order-{order}-{seed}-{bench.share:g}.npy"
    if not path.exists():
        np.save(path, _scores(bench, order, seed, stream, is_asked).rank < 50)
    hits: BoolArray = np.load(path)
    return hits


def _scores(
    bench: Bench, order: str, seed: int, stream: LiveStream, is_asked: BoolArray
) -> LiveScores:
    trained = bench.log.ordered_day
    _, generations = bench.lineage("", seed)
    place = bench.stream.days.index(trained)
    folder: Path = bench.work / f"order-{order}-{seed}"
    project = bench.log.lineage("", seed, folder)
    project = score.with_changes(project, {"training": {"full": {"order": order}}})
    from bench_replay import link_import

    link_import(bench.work / "import", folder)
    store = ModelStore(folder)
    if store.live() is None:
        copy_base(generations[place], store)
    if store.open(verify=False).manifest.window.through_day != trained:
        run_night(project, trained)
    return replay_live(bench.replayed, stream, [store.open()], FROZEN, _nobody, is_asked=is_asked)


def _nobody(_: object) -> Any:
    raise AssertionError("nothing learns within the day")

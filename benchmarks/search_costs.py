"""What our layer costs beside the engine it calls, what filters cost, and how near the scan is.

All in processor time of this process, which waiting for a core shared with other work leaves alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twotower.index.choosing import Items, one_side
from twotower.index.exact import ExactIndex
from twotower.index.faiss import Ivf, load_faiss
from twotower.index.frozen import FrozenIndex
from twotower.index.interface import VectorIndex
from twotower.index.tuning import tune_filters

__all__ = ["exact_costs", "filter_costs", "layer_costs"]

FloatArray = npt.NDArray[np.float32]

K: Final = 100
NUM_SEEN: Final = 1_000
NUM_FEW: Final = 8
SHARES: Final = (0.5, 0.1, 0.01)
TURNS: Final = 5
TILE: Final = 4_096
FILTERED_RECALL: Final = 0.99


def layer_costs(index: FrozenIndex, vectors: FloatArray, queries: FloatArray) -> dict[str, Any]:
    """Our call beside the raw Faiss call: same index, same effort, as many candidates.

    The raw call stops at the scores of codes; ours also scores its candidates with the vectors, as
    the refined one does: Faiss's own rescoring, which wants a copy of the vectors in memory.
    """
    faiss, native, depth = load_faiss(), index.native, int(Ivf.candidates * K)
    parameters = faiss.SearchParametersIVF(nprobe=index.effort)
    refining = faiss.IndexRefineFlat(native, faiss.swig_ptr(vectors))
    rescored = faiss.IndexRefineSearchParameters(
        k_factor=Ivf.candidates, base_index_params=parameters
    )

    def raw(some: FloatArray) -> Any:
        return native.search(some, depth, params=parameters)  # type: ignore[union-attr]

    def refined(some: FloatArray) -> Any:
        return refining.search(some, K, params=rescored)

    def ours(some: FloatArray) -> Any:
        return index.search(some, K)

    raw_us, refined_us, our_us = in_turns([raw, refined, ours], queries)
    taken = [
        [processor_s(partial(call, queries)) for call in (raw, refined, ours)] for _ in range(9)
    ]
    shares = np.median(np.array(taken) / np.array(taken)[:, 2:], axis=0)
    return {
        "search_overhead_us": our_us - raw_us,
        "refined_overhead_us": our_us - refined_us,
        "raw_p50_us": raw_us,
        "refined_p50_us": refined_us,
        "our_p50_us": our_us,
        "batch_throughput_share": float(shares[0]),
        "refined_batch_throughput_share": float(shares[1]),
    }


def in_turns(calls: list[Callable[[FloatArray], Any]], queries: FloatArray) -> list[float]:
    """Median microseconds of one query for each function, called in turns.

    Each is given another query, so that none finds its vectors in a cache that another filled.
    """
    times: list[list[float]] = [[] for _ in calls]
    for row in range(len(queries)):
        for turn, call in enumerate(calls):
            query = queries[row - 50 * turn][None]
            times[turn].append(processor_s(partial(call, query)))
    return [float(np.median(taken) * 1e6) for taken in times]


def processor_s(call: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def filter_costs(index: FrozenIndex, vectors: FloatArray, queries: FloatArray) -> dict[str, Any]:
    """What exclusions and attribute filters cost, whether they leak or fall short, their recall."""
    random = np.random.default_rng(2)
    items = Items(np.arange(len(index)), vectors)
    tune_filters(index, queries, K, FILTERED_RECALL, one_side(items))
    near = index.search(queries, 3 * NUM_SEEN).ids
    anywhere = random.integers(0, len(index), (len(queries), NUM_SEEN // 2))
    seen = [
        np.concatenate([random.choice(row, NUM_SEEN // 2), other])
        for row, other in zip(near, anywhere, strict=True)
    ]
    turn, few_turn = itertools.cycle(seen), itertools.cycle([row[:NUM_FEW] for row in near])

    def plain(query: FloatArray) -> Any:
        return index.search(query, K)

    def few(query: FloatArray) -> Any:
        return index.search(query, K, exclude=[next(few_turn)])

    def less(query: FloatArray) -> Any:
        return index.search(query, K, exclude=[next(turn)])

    plain_us, few_us, less_us = in_turns([plain, few, less], queries)
    answers = index.search(queries, K, exclude=seen)
    leaked = sum(np.isin(found, out).any() for found, out in zip(answers.ids, seen, strict=True))
    return {
        "filter_factor": index.filter_factor,
        "filtered_cost_ratio": less_us / plain_us,
        "filtered_few_cost_ratio": few_us / plain_us,
        "filtered_leaked": int(leaked),
        "filtered_short": int((answers.ids < 0).any(axis=1).sum()),
        "attribute_filters": [attribute_filter(index, vectors, queries, share) for share in SHARES],
    }


def attribute_filter(
    index: FrozenIndex, vectors: FloatArray, queries: FloatArray, share: float
) -> dict[str, Any]:
    """One shared mask that lets a share of the items through."""
    mask = np.random.default_rng(3).random(len(index)) < share
    mask.flags.writeable = False  # as the service hands it over
    few = queries[:200]
    allowed = np.flatnonzero(mask)
    exact = ExactIndex.build(allowed, vectors[allowed]).search(few, K)
    times, hits, short = [], [], 0
    for row in range(len(few)):
        search = partial(index.search, few[row : row + 1], K, allowed=mask)
        times.append(processor_s(search))
        found = search().ids[0]
        hits.append(np.isin(exact.ids[row], found).mean())
        short += int((found < 0).any())
    p50_us = float(np.median(times) * 1e6)
    return {"share": share, "ann_recall": float(np.mean(hits)), "p50_us": p50_us, "short": short}


def exact_costs(index: VectorIndex, vectors: FloatArray, queries: FloatArray) -> dict[str, Any]:
    """The exact search of a batch beside the bare products of the same vectors, in turns."""
    batch = np.resize(queries, (512, queries.shape[1]))
    room = np.empty((len(batch), TILE), np.float32)

    def products() -> None:
        for start in range(0, len(vectors), TILE):
            some = vectors[start : start + TILE]
            np.matmul(batch, some.T, out=room[:, : len(some)])

    pairs = [
        (processor_s(products), processor_s(lambda: index.search(batch, K))) for _ in range(TURNS)
    ]
    bound_s, our_s = np.min(pairs, axis=0).tolist()
    flops = 2 * len(batch) * vectors.size
    return {
        "exact_batch_share_of_bound": bound_s / our_s,
        "sgemm_gflop_per_s": flops / bound_s / 1e9,
        "exact_batch_queries_per_s": len(batch) / our_s,
    }

"""From a checkpoint to a generation: export, encode, index, measure, judge, commit.

The item vectors of the index come out of the exported ONNX tower and the staged arrays, not out
of the trainer: what is published is what is served. Nothing becomes live here.
Legend: `C` items of the corpus, `n` probe users, `D` vector dimension.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.checkpoint import Checkpoint
from twotower.data.ids import Id
from twotower.errors import DataError
from twotower.index import Items, build_index, choose_index, drop_orphans
from twotower.index.settings import IndexSettings
from twotower.index.tuning import ann_recall, measure_point
from twotower.publishing.artifacts import write_arrays, write_display, write_towers
from twotower.publishing.encoding import Encoder
from twotower.publishing.gates import Gate, check_finite, default_gates
from twotower.publishing.generation import Generation
from twotower.publishing.item_register import read_register
from twotower.publishing.manifest import (
    GateResult,
    IndexEntry,
    Manifest,
    Scoring,
    Trained,
    Window,
    digest_bytes,
)
from twotower.publishing.measurement import Built, measure
from twotower.publishing.settings import PublishingSettings
from twotower.publishing.staging import Staging
from twotower.publishing.store import ModelStore, utc_text

__all__ = ["publish"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

INDEX_CHOICE: Final = "index_choice.json"
"""Of a generation: which engines were tried, with their curves, and which was chosen."""
_RECALL_K: Final = 100
_PROBE_SEED: Final = 0


def publish(
    checkpoint: Checkpoint,
    store: ModelStore,
    *,
    index: IndexSettings,
    settings: PublishingSettings | None = None,
    display: Mapping[Id, Mapping[str, object]] | None = None,
    metrics: Mapping[str, float] | None = None,
    gates: Sequence[Gate] | None = None,
) -> Generation:
    """Write the next generation of `store` from `checkpoint`; it is not live yet.

    What the gates found is in its manifest: `ModelStore.activate` refuses a generation that did
    not pass, unless it is forced.

    Args:
        checkpoint: A trained base or full model.
        store: Where to.
        index: Which engine.
        settings: Bars and sample sizes.
        display: Fields to show of items, by item ID; their features where it is empty.
        metrics: Figures to keep in the manifest, such as a recall; what is undefined is left out.
        gates: Instead of `default_gates`.

    Raises:
        GateRefused: a number is not finite; nothing was published.
        DataError: the corpus is empty; nothing was published.
        NotReady: another publish is running.
        CorruptArtifact: the parent is damaged; nothing was published.
    """
    settings = settings or PublishingSettings()
    state, checkpoint = checkpoint, _without_withdrawn(checkpoint, store)
    if not len(checkpoint.corpus):
        raise DataError("expected items in the corpus, found none; nothing was published")
    finite = check_finite({**checkpoint.arrays(), "loss": np.array([checkpoint.meta.trained.loss])})
    gates = default_gates(settings.gates) if gates is None else gates
    parent = _parent(store, checkpoint.meta.parent)
    with store.stage() as staging:
        write_towers(staging, checkpoint)
        write_arrays(staging, checkpoint)
        write_display(staging, checkpoint, display or {})
        encoder = _encoder(staging, checkpoint, settings)
        _sweep(store, index)
        built = _build(checkpoint, encoder, index, settings, staging.name)
        measured = measure(checkpoint, built, parent, settings)
        results = [finite, *(gate.measure(measured) for gate in gates)]
        staging.write_array("item_vectors.npy", built.item_vectors)
        built.index.save(staging.file("index"))
        staging.write(INDEX_CHOICE, msgspec.json.encode(built.choice))
        state.save(staging.file("checkpoint"))  # an item that is restored comes back
        return staging.commit(_manifest(checkpoint, built, results, metrics or {}))


def _without_withdrawn(checkpoint: Checkpoint, store: ModelStore) -> Checkpoint:
    """Return the checkpoint with the corpus that may be returned."""
    register = read_register(store.root.parent)
    if not register.withdrawn:
        return checkpoint
    gone = checkpoint.items.positions(register.withdrawn_ids(checkpoint.items.kind))
    kept = checkpoint.corpus[~np.isin(checkpoint.corpus, gone)]
    return dataclasses.replace(checkpoint, corpus=kept)


def _parent(store: ModelStore, name: str | None) -> Generation | None:
    """Return the parent, every byte of it checked: its index and towers will be run."""
    if name is None or name not in store.names():
        return None
    return store.open(name)


def _scoring(checkpoint: Checkpoint) -> Scoring:
    return Scoring(
        popularity_weight=checkpoint.meta.model.popularity.weight,
        temperature=checkpoint.meta.training.temperature,
    )


def _encoder(staging: Staging, checkpoint: Checkpoint, settings: PublishingSettings) -> Encoder:
    return Encoder(
        staging,
        _scoring(checkpoint),
        as_of_ms=checkpoint.meta.window.cut_ms,
        history_length=checkpoint.meta.model.history_length,
        history_pooling=checkpoint.meta.model.history_pooling,
        threads=settings.threads,
    )


def _sweep(store: ModelStore, index: IndexSettings) -> None:
    """Drop what failed publishes and prunes left on a server."""
    if index.engine == "milvus":
        drop_orphans(index.milvus, store.names())


def _build(
    checkpoint: Checkpoint,
    encoder: Encoder,
    index: IndexSettings,
    settings: PublishingSettings,
    name: str,
) -> Built:
    corpus = checkpoint.corpus
    items = encoder.item_vectors(corpus, settings.batch_rows)
    probe_users = _probe_users(checkpoint, settings.num_probe_users)
    users = encoder.user_vectors(probe_users, settings.batch_rows)
    check_finite({"item vectors": items, "user vectors": users})
    seed = checkpoint.meta.training.seed
    built, choice = choose_index(Items(corpus, items, users, seed, name), index, _RECALL_K)
    exact = build_index("exact", corpus, items, index).search(users, _RECALL_K)
    recall = ann_recall(built.search(users, _RECALL_K), exact)
    p50_us = None
    if settings.gates.max_search_us and len(users):
        p50_us = measure_point(built, users, exact, 0).p50_us
    return Built(encoder, items, probe_users, users, built, choice, recall, p50_us)


def _probe_users(checkpoint: Checkpoint, num_users: int) -> IntArray:
    """Return a fixed random sample of the known users, those with recent clicks first."""
    order = np.random.default_rng(_PROBE_SEED).permutation(len(checkpoint.users))
    has_clicks = checkpoint.user_state.recent.lengths()[order] > 0
    return np.concatenate([order[has_clicks], order[~has_clicks]])[:num_users]


def _learning_room(checkpoint: Checkpoint) -> dict[str, float]:
    """Return how far Adagrad has come to rest: a row's step shrinks with its accumulator's root."""
    tables = checkpoint.model.tables.values()
    return {
        "accumulator_decay": checkpoint.meta.training.accumulator_decay,
        "largest_accumulator": max(
            float(table.accumulator.max()) for table in tables if len(table)
        ),
    }


def _counts(checkpoint: Checkpoint) -> dict[str, int]:
    return {
        "users": len(checkpoint.users),
        "items": len(checkpoint.items),
        "corpus": len(checkpoint.corpus),
        "user_rows": checkpoint.users.num_rows,
        "item_rows": checkpoint.items.num_rows,
        "user_feature_rows": checkpoint.user_features.num_rows,
        "item_feature_rows": checkpoint.item_features.num_rows,
        "seen_items": len(checkpoint.user_state.seen.values),
        **msgspec.to_builtins(checkpoint.meta.turnover),
        **checkpoint.meta.negatives,
    }


def _manifest(
    checkpoint: Checkpoint,
    built: Built,
    results: list[GateResult],
    metrics: Mapping[str, float],
) -> Manifest:
    meta = checkpoint.meta
    settings = msgspec.json.encode([meta.model, meta.training], order="sorted")
    trained = msgspec.to_builtins(meta.trained)
    del trained["drawn_negatives"]  # among the counts, by name
    return Manifest(
        name="",
        kind=meta.kind,
        parent=meta.parent,
        created_at=utc_text(time.time()),
        window=msgspec.convert(msgspec.to_builtins(meta.window), Window),
        trained=msgspec.convert(trained, Trained),
        seed=meta.training.seed,
        settings_digest=digest_bytes(settings),
        vector_dim=built.item_vectors.shape[1],
        scoring=_scoring(checkpoint),
        history_length=meta.model.history_length,
        history_pooling=meta.model.history_pooling,
        counts=_counts(checkpoint),
        index=IndexEntry(
            engine=built.choice.chosen,
            num_items=len(built.index),
            ann_recall_at_100=built.ann_recall,
            num_probe_users=len(built.probe_users),
        ),
        metrics={
            name: value
            for name, value in {**_learning_room(checkpoint), **metrics}.items()
            if math.isfinite(value)
        },
        gates=results,
    )

"""A project with a live generation and an example log, for tests of the increments over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stream import stream_of
from tiny_checkpoint import external_ids, tiny_checkpoint
from twotower.checkpoint import Checkpoint
from twotower.config import Project, load_project
from twotower.data.example_log import ExampleManifest, JoinedExamples, ShardSpan
from twotower.data.example_log.columns import to_columns
from twotower.data.example_log.manifest import examples_path, read_manifest, write_manifest
from twotower.data.ids import IdKind
from twotower.data.tfrecord import write_shard
from twotower.index.settings import IndexSettings
from twotower.publishing.publisher import publish
from twotower.publishing.store import ModelStore

__all__ = ["append_examples", "increment_project", "poisoned", "publish_tiny", "some_examples"]

_PROJECT = """
config_version = 1
[events]
files = "events.csv"
user_id = "user"
item_id = "item"
time = { column = "time", unit = "s" }
[training]
threads = 1
[increment]
batch_size = 16
uniform = 8
learning_rate = 0.2
commit_every = 40
"""


def increment_project(
    folder: Path,
    *,
    kind: IdKind = "int",
    examples: int = 200,
    more: str = "",
    base: Checkpoint | None = None,
) -> Project:
    """One random generation is live, and so many examples are joined."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "twotower.toml").write_text(_PROJECT + more)
    project = load_project(folder / "twotower.toml")
    publish_tiny(project, base, kind=kind)
    append_examples(project, some_examples(examples, kind=kind))
    return project


def poisoned() -> Checkpoint:
    """A base that serves well, and whose users' rows are no numbers once they learn."""
    base = tiny_checkpoint()
    base.model.tables["user_id"].accumulator[:] = -1e6
    return base


def publish_tiny(
    project: Project,
    checkpoint: Checkpoint | None = None,
    *,
    seed: int = 0,
    activate: bool = True,
    **named: Any,
) -> str:
    """Publish a generation, of random parameters if none are given; make it live."""
    store = ModelStore(project.data_path)
    checkpoint = checkpoint or tiny_checkpoint(seed=seed, **named)
    name = publish(checkpoint, store, index=IndexSettings(), gates=[]).name
    if activate:
        store.activate(name)
    return name


def some_examples(
    size: int, *, seed: int = 0, first_offset: int = 0, kind: IdKind = "int"
) -> JoinedExamples:
    """Users and items that the generation knows, three more of each, and some negatives."""
    rng = np.random.default_rng((seed, first_offset))
    users, items = external_ids(kind, "user", 15), external_ids(kind, "item", 63)
    return stream_of(
        [users[n] for n in rng.integers(0, 15, size)],
        [items[n] for n in rng.integers(0, 63, size)],
        kind=kind,
        first_offset=first_offset,
        start_ms=1_651_420_800_000 + 1000 * first_offset,
        is_positive=list(rng.random(size) < 0.7),
    )


def append_examples(project: Project, examples: JoinedExamples, **fields: Any) -> None:
    """Put a shard behind the example log; `fields` are others of its manifest."""
    folder = examples_path(project.data_path)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ["str" if ids.dtype.kind == "S" else "int" for ids in examples[2:4]]
    manifest = read_manifest(folder) or msgspec.convert(
        {"user_id_kind": kinds[0], "item_id_kind": kinds[1]}, ExampleManifest
    )
    start, end = manifest.end, manifest.end + len(examples.offset)
    name = f"examples-{start:012d}-{end:012d}.tfrecord"
    entry = write_shard(folder / name, to_columns(examples))
    shard = ShardSpan(name=name, start=start, end=end, bytes=entry.bytes, xxh3=entry.xxh3)
    changes = {"end": end, "shards": [*manifest.shards, shard], **fields}
    write_manifest(folder, msgspec.structs.replace(manifest, **changes))

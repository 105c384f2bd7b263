"""The vectors that searches are measured on: none alone decides between graphs and lists.

`gaps`: clusters of power-law sizes with empty space between them. `even`: one cloud with a decaying
spectrum. `gowalla`: items and users of a two-tower trained on Gowalla. `grown`: any number of
items, each placed between a trained item and one of its 30 nearest, with noise of the trained
vectors' own covariance; asked for by the trained users.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from twotower.index.exact import ExactIndex

__all__ = ["DIMENSIONS", "SETS", "SearchSet", "gaps", "gowalla", "make_set"]

FloatArray = npt.NDArray[np.float32]

DIMENSIONS: Final = 64
EPOCHS: Final = 8
BLOCK: Final = 250_000
NEIGHBOURS: Final = 30
SETS: Final = ("even", "gaps", "gowalla", "grown")


class SearchSet(NamedTuple):
    """Items and what asks for them."""

    name: str
    vectors: FloatArray
    queries: FloatArray


def make_set(name: str, num_items: int, num_queries: int, trained: Path | None) -> SearchSet:
    """Return a set of `num_items`; `gowalla` has as many as were trained."""
    if name in ("gaps", "even"):
        vectors, queries = {"gaps": gaps, "even": even}[name](num_items)
        return SearchSet(name, vectors, queries[:num_queries])
    if trained is None:
        raise ValueError(f"the set {name} needs --gowalla and --work")
    with np.load(trained) as file:
        items, users = file["items"], file["users"]
    chosen = np.random.default_rng(3).permutation(len(users))[:num_queries]
    vectors = items if name == "gowalla" else grown(items, num_items)
    return SearchSet(name, vectors, users[chosen])


def gaps(num_items: int) -> tuple[FloatArray, FloatArray]:
    """Clusters of power-law sizes in groups, with space between them."""
    random = np.random.default_rng(0)
    num_clusters = max(20, num_items // 50)
    groups = random.standard_normal((max(4, num_clusters // 20), DIMENSIONS), np.float32)
    centres = groups[random.integers(0, len(groups), num_clusters)]
    centres += np.float32(0.6) * random.standard_normal(centres.shape, np.float32)
    weights = 1 / np.arange(1, num_clusters + 1) ** 0.7
    members = random.choice(num_clusters, num_items, p=weights / weights.sum())
    vectors = np.empty((num_items, DIMENSIONS), np.float32)
    for start in range(0, num_items, BLOCK):
        block = centres[members[start : start + BLOCK]]
        noise = random.standard_normal(block.shape, np.float32)
        vectors[start : start + BLOCK] = unit(block + np.float32(0.45) * noise)
    return vectors, mixed(vectors, random)


def even(num_items: int) -> tuple[FloatArray, FloatArray]:
    """One cloud whose spectrum decays, as trained vectors have it."""
    random = np.random.default_rng(1)
    scale = ((1 + np.arange(DIMENSIONS)) ** -0.4).astype(np.float32)
    vectors = np.empty((num_items, DIMENSIONS), np.float32)
    for start in range(0, num_items, BLOCK):
        shape = vectors[start : start + BLOCK].shape
        vectors[start : start + BLOCK] = unit(random.standard_normal(shape, np.float32) * scale)
    return vectors, mixed(vectors, random)


def mixed(vectors: FloatArray, random: np.random.Generator, num_queries: int = 500) -> FloatArray:
    """Queries: two items and noise, as users like more than one thing."""
    pairs = random.integers(0, len(vectors), (num_queries, 2))
    noise = random.standard_normal((num_queries, DIMENSIONS)) / DIMENSIONS**0.5
    return unit(vectors[pairs[:, 0]] + 0.6 * vectors[pairs[:, 1]] + 0.5 * noise)


def unit(vectors: npt.NDArray[Any]) -> FloatArray:
    """Rows of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def grown(trained: FloatArray, num_items: int) -> FloatArray:
    """More items with the shape of trained ones, and no gaps between them."""
    random = np.random.default_rng(4)
    labels = np.arange(len(trained))
    near = ExactIndex.build(labels, trained).search(trained, NEIGHBOURS + 1).ids[:, 1:]
    spread = np.cov(trained.T) + 1e-6 * np.eye(trained.shape[1])
    shape = np.linalg.cholesky(spread / np.trace(spread)).T.astype(np.float32)
    vectors = np.empty((num_items, trained.shape[1]), np.float32)
    for start in range(0, num_items, BLOCK):
        place = vectors[start : start + BLOCK]
        first = random.integers(0, len(trained), len(place))
        second = near[first, random.integers(0, NEIGHBOURS, len(place))]
        share = 0.5 * random.random((len(place), 1), np.float32)
        between = unit(trained[first] * (1 - share) + trained[second] * share)
        noise = random.standard_normal(place.shape, np.float32) @ shape
        place[:] = unit(between + np.float32(0.5) * noise)
    return vectors


def gowalla(source: Path, work: Path) -> Path:
    """Return the file of vectors of a two-tower trained on Gowalla; trains it the first time.

    Args:
        source: holds `train.txt.gz` and `test.txt.gz`.
        work: where the import and the vectors are kept.
    """
    path = work / "vectors.npz"
    if path.exists():
        return path
    from quality_data import open_split
    from quality_rows import MODEL, TRAINING
    from twotower.publishing.trainer_vectors import trainer_item_vectors, trainer_user_vectors
    from twotower.training.base_model import train_base_model

    split = open_split(source, work, "test")
    once = msgspec.structs.replace(TRAINING.base, epochs=EPOCHS)
    training = msgspec.structs.replace(TRAINING, base=once)
    state = train_base_model(
        split.log.data, users=None, items=split.project.items, model=MODEL, training=training
    )
    items = trainer_item_vectors(state, np.arange(len(state.items)))
    users = trainer_user_vectors(state, np.arange(len(state.users)))
    np.savez(path, items=items, users=users)
    return path

"""User and item vectors from a generation's own files: what is published is what is served.

ID rows and history rows are looked up here, outside the ONNX graphs, in mapped arrays that all
processes share. The publisher, the gates, the evaluation and the server use this one path. Free
of torch. Legend: `n` asked for, `N` known entities, `H` items of the histories, `D` vector
dimension (the popularity coordinate included).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twotower.data.features import EncodedFeatures, FeatureSpec
from twotower.data.ids import UNKNOWN_ROW
from twotower.data.user_state import Ragged, take_ragged
from twotower.errors import ConfigError, suggestion
from twotower.publishing.entities import Artifacts, Entities
from twotower.publishing.generation import Generation
from twotower.publishing.manifest import HistoryPooling, Scoring
from twotower.publishing.tower import Tower

__all__ = ["Encoder", "with_fields"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_BATCH: Final = 1024
_FIRST: Final = np.zeros(1, np.int64)


class Encoder:
    """Both towers of one generation with everything that they are fed. Safe for many threads."""

    def __init__(
        self,
        artifacts: Artifacts,
        scoring: Scoring,
        *,
        as_of_ms: int,
        history_length: int,
        history_pooling: HistoryPooling,
        threads: int = 1,
    ) -> None:
        """Map the arrays and load the towers; the files' checksums were verified before.

        Args:
            artifacts: Where the files are.
            scoring: Whether vectors have a popularity coordinate.
            as_of_ms: The cut, at which ages of timestamp features are measured.
            history_length: Most recent clicks that are pooled, 0 for none.
            history_pooling: How, as the trainer did; see `ModelSettings`.
            threads: Threads of one tower call.

        Raises:
            MissingExtra: onnxruntime is not installed.
        """
        self.users = Entities(artifacts, "users")
        self.items = Entities(artifacts, "items")
        self.user_features = FeatureSpec.from_json(artifacts.read("user_features.json"))
        self.item_features = FeatureSpec.from_json(artifacts.read("item_features.json"))
        self.recent = _ragged(artifacts, "recent")
        self.seen = _ragged(artifacts, "seen")
        self._scoring = scoring
        self.as_of_ms = as_of_ms
        """The cut, at which ages of timestamp features are measured."""
        self._history_length = history_length
        self._history_pooling = history_pooling
        self.user_id_embeddings: FloatArray = artifacts.array("user_id_embeddings.npy")
        self.item_id_embeddings: FloatArray = artifacts.array("item_id_embeddings.npy")
        self._history_rows: FloatArray = artifacts.array("history_embeddings.npy")
        self._log_popularity: FloatArray = artifacts.array("log_popularity.npy")
        self._user_tower = Tower(artifacts.read("user_tower.onnx"), threads)
        self._item_tower = Tower(artifacts.read("item_tower.onnx"), threads)

    @classmethod
    def of(cls, generation: Generation, *, threads: int = 1) -> Encoder:
        """Open the encoder of a published generation."""
        manifest = generation.manifest
        return cls(
            generation,
            manifest.scoring,
            as_of_ms=manifest.window.cut_ms,
            history_length=manifest.history_length,
            history_pooling=manifest.history_pooling,
            threads=threads,
        )

    def user_vectors(self, positions: IntArray, batch: int = _BATCH) -> FloatArray:
        """Return the vectors of users with their stored profile and history: `[n, D]`.

        A position of -1 is somebody of whom nothing is known.
        """
        known = positions >= 0
        vectors = _stack([self._known_users(part) for part in _parts(positions[known], batch)])
        if known.all():
            return vectors
        nobody = self.user_vector(-1, self.user_features.missing(1), np.zeros(0, np.int64))
        everybody = np.repeat(nobody, len(positions), axis=0)
        everybody[known] = vectors
        return everybody

    def user_vectors_with(self, positions: IntArray, recent: Ragged) -> FloatArray:
        """Return the vectors of users with given recent clicks in place of the stored: `[n, D]`.

        Args:
            positions: `[n]`, -1 for a user that is not known: unknown-ID row, no profile.
            recent: `n` lists of item positions, oldest first; those beyond the history are dropped.
        """
        is_known = positions >= 0
        profiles = self.user_features.missing(len(positions))
        for values, stored in zip(
            profiles, self.users.profiles_at(positions[is_known]), strict=True
        ):
            values[is_known] = stored
        rows = np.full(len(positions), UNKNOWN_ROW, np.int64)
        rows[is_known] = self.users.rows[positions[is_known]]
        start, end = recent.offsets[:-1], recent.offsets[1:]
        newest = take_ragged(recent, np.maximum(start, end - self._history_length), end)
        return self._encode_users(rows, profiles, self._pool(newest))

    def user_vectors_of(
        self, embeddings: FloatArray, profiles: EncodedFeatures, recent: Ragged
    ) -> FloatArray:
        """Return the vectors of users from given ID rows, profiles and recent clicks: `[n, D]`.

        Args:
            embeddings: `[n, id_dim]`.
            profiles: of `n` entities.
            recent: `n` lists of item positions, oldest first; those beyond the history are
                dropped, and one that is not known, -1, counts with the unknown-ID row.
        """
        start, end = recent.offsets[:-1], recent.offsets[1:]
        newest = take_ragged(recent, np.maximum(start, end - self._history_length), end)
        history = self._pool_rows(self._history_rows_at(newest.values), newest.offsets)
        return self._encode(embeddings, profiles, history)

    def item_vectors(self, positions: IntArray, batch: int = _BATCH) -> FloatArray:
        """Return the vectors of items: `[n, D]`."""
        return _stack([self._known_items(part) for part in _parts(positions, batch)])

    def user_vector(
        self,
        position: int,
        profile: EncodedFeatures,
        recent: IntArray,
        embedding: FloatArray | None = None,
    ) -> FloatArray:
        """Return the vector of one live request, `[1, D]`.

        Args:
            position: Of the user, -1 for one that is not known: the unknown-ID row is used.
            profile: Of one entity; see `profile`.
            recent: `[H]` item positions, oldest first; those beyond the history are dropped. An
                item that this generation does not know, -1 or beyond its items, counts with the
                unknown-ID row.
            embedding: `[1, id_dim]`, the user's newer ID row in place of the generation's.
        """
        if embedding is None:
            row = self.users.rows[position] if position >= 0 else UNKNOWN_ROW
            embedding = self.user_id_embeddings[row]
        recent = recent[max(0, len(recent) - self._history_length) :]
        history = self._pool_one(self._history_rows_at(recent))
        vector = self._user_tower.run_one(_inputs(embedding, history, profile))
        if not self._scoring.has_popularity:
            return vector
        with_one = np.ones((1, vector.shape[1] + 1), np.float32)
        with_one[:, :-1] = vector
        return with_one

    def item_embedding(self, position: int) -> FloatArray:
        """Return an item's ID row, `[1, id_dim]`; the unknown-ID row where it is not known, -1."""
        row = self.items.rows[position] if position >= 0 else UNKNOWN_ROW
        embedding: FloatArray = self.item_id_embeddings[row][None]
        return embedding

    def item_vector(
        self, embedding: FloatArray, profile: EncodedFeatures, popularity: np.float32
    ) -> FloatArray:
        """Return the vector of one item of the day, `[1, D]`.

        One at a time: a product over many rows may round a row otherwise than a product over it
        alone, and an item's vector must not depend on which others came with it.

        Args:
            embedding: `[1, id_dim]`.
            profile: Of one entity.
            popularity: The popularity coordinate; left out where vectors have none.
        """
        vector = self._item_tower.run(_inputs(embedding, None, profile))
        if not self._scoring.has_popularity:
            return vector
        return np.column_stack([vector, np.array([popularity], np.float32)])

    def popularity_coordinate(self, position: int) -> np.float32:
        """Return the popularity coordinate of an item, the least of all for one not known, -1."""
        found = self._log_popularity
        logarithm = found[position] if position >= 0 else found.min(initial=0.0)
        return np.float32(self._popularity_weight() * logarithm)

    def _popularity_weight(self) -> np.float32:
        """Return what a log popularity is multiplied with: the score times it is the logit's."""
        return np.float32(self._scoring.popularity_weight * self._scoring.temperature)

    def encode_item(self, values: Mapping[str, object]) -> EncodedFeatures:
        """Return the features of one item from readable values, ages as of the cut.

        Raises:
            ConfigError: a feature is none of this model's.
        """
        known = [field.name for field in self.item_features.fields]
        if unknown := sorted(set(values) - set(known)):
            raise ConfigError(_unknown_feature("item", unknown[0], known))
        return self.item_features.encode_one(values, self.as_of_ms)[0]

    def profile(
        self, position: int, given: Mapping[str, object]
    ) -> tuple[EncodedFeatures, list[str]]:
        """Return one user's features and, for each given one that says nothing, why.

        A given feature wins over the stored one, also when it is None; one that is not given
        keeps its stored value; an unknown user (-1) has none stored.

        Returns:
            The features, and notes such as `feature:city=unseen` or `feature:age=missing`.

        Raises:
            ConfigError: a given feature is none of this model's.
        """
        spec = self.user_features
        stored = self.users.profile_at(position) if position >= 0 else spec.missing(1)
        if not given:
            return stored, []
        known = [field.name for field in spec.fields]
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(_unknown_feature("user", unknown[0], known))
        request, missing, unseen = spec.encode_one(given, self.as_of_ms)
        notes = [f"feature:{name}=unseen" for name in unseen if name in given]
        notes += [f"feature:{name}=missing" for name in missing if name in given]
        return with_fields(spec, stored, request, set(given)), notes

    def _known_users(self, positions: IntArray) -> FloatArray:
        start, end = self.recent.offsets[positions], self.recent.offsets[positions + 1]
        history = self._pool(
            take_ragged(self.recent, np.maximum(start, end - self._history_length), end)
        )
        profiles = self.users.profiles_at(positions)
        return self._encode_users(self.users.rows[positions], profiles, history)

    def _known_items(self, positions: IntArray) -> FloatArray:
        embedding = self.item_id_embeddings[self.items.rows[positions]]
        profiles = self.items.profiles_at(positions)
        vectors = self._item_tower.run(_inputs(embedding, None, profiles))
        if not self._scoring.has_popularity:
            return vectors
        popularity = self._popularity_weight() * self._log_popularity[positions]
        return np.column_stack([vectors, popularity])

    def _encode_users(
        self, rows: IntArray, profiles: EncodedFeatures, history: FloatArray
    ) -> FloatArray:
        return self._encode(self.user_id_embeddings[rows], profiles, history)

    def _encode(
        self, embeddings: FloatArray, profiles: EncodedFeatures, history: FloatArray
    ) -> FloatArray:
        vectors = self._user_tower.run(_inputs(embeddings, history, profiles))
        if not self._scoring.has_popularity:
            return vectors
        return np.column_stack([vectors, np.ones(len(vectors), np.float32)])

    def _history_rows_at(self, positions: IntArray) -> IntArray:
        """Return the rows of items in the history table, row 0 of those that are not known."""
        if not len(positions):
            return positions
        known = (positions >= 0) & (positions < len(self.items))
        if known.all():
            return self.items.rows[positions]
        rows = np.full(len(positions), UNKNOWN_ROW, np.int64)
        rows[known] = self.items.rows[positions[known]]
        return rows

    def _pool(self, histories: Ragged) -> FloatArray:
        """Return the pooled history rows of each user, zeros for an empty one: `[n, dim]`."""
        return self._pool_rows(self.items.rows[histories.values], histories.offsets)

    def _pool_rows(self, rows: IntArray, offsets: IntArray) -> FloatArray:
        lengths = np.diff(offsets)
        pooled = np.zeros((len(lengths), self._history_rows.shape[1]), np.float32)
        filled = lengths > 0
        if filled.any():
            total = np.add.reduceat(self._history_rows[rows], offsets[:-1][filled], axis=0)
            divisor = lengths[filled, None].astype(np.float32)
            pooled[filled] = total / (
                divisor if self._history_pooling == "mean" else np.sqrt(divisor)
            )
        return pooled

    def _pool_one(self, rows: IntArray) -> FloatArray:
        """Return what `_pool_rows` returns of one user, to the bit, `[1, dim]`: by the same sum."""
        if not len(rows):
            return np.zeros((1, self._history_rows.shape[1]), np.float32)
        total: FloatArray = np.add.reduceat(self._history_rows.take(rows, axis=0), _FIRST, axis=0)
        length = np.float32(len(rows))
        return total / (length if self._history_pooling == "mean" else np.sqrt(length))


def _ragged(artifacts: Artifacts, name: str) -> Ragged:
    return Ragged(
        artifacts.array(f"users/{name}_items.npy"), artifacts.array(f"users/{name}_offsets.npy")
    )


def _inputs(
    embedding: FloatArray, history: FloatArray | None, profiles: EncodedFeatures
) -> dict[str, npt.NDArray[Any]]:
    inputs: dict[str, npt.NDArray[Any]] = {
        "id_embedding": embedding,
        "categorical": profiles.categorical,
        "numeric": profiles.numeric,
        "multi": profiles.multi,
    }
    return inputs if history is None else inputs | {"history_embedding": history}


def _parts(positions: IntArray, batch: int) -> Iterator[IntArray]:
    for start in range(0, max(len(positions), 1), batch):
        yield positions[start : start + batch]


def _stack(parts: list[FloatArray]) -> FloatArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def with_fields(
    spec: FeatureSpec, stored: EncodedFeatures, request: EncodedFeatures, given: set[str]
) -> EncodedFeatures:
    """Return `stored` with the given fields of `request`; both of one entity."""
    coded = np.array([field.name in given for field in spec.coded], bool)
    measured = np.repeat(np.array([field.name in given for field in spec.measured], bool), 2)
    listed = np.array([field.name in given for field in spec.listed], bool)
    return EncodedFeatures(
        np.where(coded, request.categorical, stored.categorical),
        np.where(measured, request.numeric, stored.numeric),
        np.where(listed[:, None], request.multi, stored.multi),
    )


def _unknown_feature(side: str, name: str, known: list[str]) -> str:
    return (
        f"unknown {side} feature {name!r}; known: {', '.join(known) or 'none'}"
        f"{suggestion(name, known)}"
    )

"""Why a user gets an item: its score and rank, the clicks nearest to it, what each feature adds.

A contribution is the score less the score without the feature: a categorical value becomes missing,
the ID becomes the row of unknown IDs, the clicks become none. The towers are not linear, so
contributions do not add up to the score; each says what this one thing changes, all else kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.data.features import FeatureSpec
from twotower.data.ids import UNKNOWN_ROW
from twotower.publishing.encoding import with_fields
from twotower.serving.answer_json import raw_json
from twotower.serving.asking_user import AskingUser
from twotower.serving.item_space import ItemParts
from twotower.serving.messages import MAX_K, ExplainRequest
from twotower.serving.profiles import OF_GENERATION, StoredProfile
from twotower.serving.retriever import Retriever

__all__ = ["explain"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class _Pair(NamedTuple):
    """The user and the item of one explanation."""

    user: AskingUser
    stored: StoredProfile
    user_vector: FloatArray
    number: int
    item_vector: FloatArray


def explain(
    retriever: Retriever, request: ExplainRequest, stored: StoredProfile = OF_GENERATION
) -> dict[str, Any] | None:
    """Return the fields of `ExplainAnswer` but for those of `MadeBy`; None for an unknown item.

    Args:
        retriever: What answers.
        request: Which user and which item.
        stored: The user's profile, as for `Retriever.retrieve`.

    Raises:
        ConfigError: a feature is none of the model's.
        DataError: an ID is of the wrong kind.
    """
    number = int(retriever.space.numbers_of([request.item_id])[0])
    if number < 0:
        return None
    user = retriever.users.asking(request.user_id, request.features, request.recent, stored)
    vector = user.vector(retriever.encoder)
    item_vector = retriever.space.vectors(np.array([number]))
    pair = _Pair(user, stored, vector, number, item_vector)
    rank, score = _rank(retriever, pair)
    return {
        "degraded": user.degraded or None,
        "score": score,
        "rank": rank,
        "hidden_because": _hidden_because(retriever, pair),
        "nearest_clicks": _nearest_clicks(retriever, pair, request),
        "user": _of_user(retriever, pair, request),
        "item": _of_item(retriever, pair),
    }


def _score(user_vector: FloatArray, item_vector: FloatArray) -> float:
    return float(np.float32((user_vector @ item_vector.T)[0, 0]))


def _rank(retriever: Retriever, pair: _Pair) -> tuple[int | None, float]:
    """Return the item's rank among all that can be found, None below the thousandth."""
    k = max(1, min(MAX_K, len(retriever.index)))
    found = retriever.index.search(pair.user_vector, k)
    places = np.flatnonzero(found.ids[0] == pair.number)
    if not len(places):
        return None, _score(pair.user_vector, pair.item_vector)
    return int(places[0]) + 1, float(found.scores[0, places[0]])


def _hidden_because(retriever: Retriever, pair: _Pair) -> list[str]:
    """Return why no answer to this user holds the item, whatever its score."""
    reasons = []
    if pair.number in retriever.users.shown(pair.user):
        reasons.append("seen")
    withdrawn = retriever.items.positions_of(retriever.overlay.items.withdrawn)
    if pair.number in withdrawn:
        reasons.append("withdrawn")
    elif not retriever.space.is_searched(pair.number):
        reasons.append("not_in_corpus")
    return reasons


def _nearest_clicks(
    retriever: Retriever, pair: _Pair, request: ExplainRequest
) -> list[dict[str, Any]]:
    """Return those of the user's clicks that are nearest to the item, by cosine."""
    clicks = np.unique(pair.user.clicks)
    clicks = clicks[clicks < retriever.space.num_items]
    if not len(clicks):
        return []
    item = retriever.space.directions(np.array([pair.number]))[0]
    cosines = retriever.space.directions(clicks) @ item
    best = np.argsort(-cosines, kind="stable")[: request.num_clicks]
    found: list[dict[str, Any]] = []
    for item_id, place in zip(retriever.decode_items(clicks[best]), best.tolist(), strict=True):
        found.append({"item_id": item_id, "cosine": float(cosines[place])})
        if request.display:
            found[-1]["display"] = raw_json(retriever.shown.display_json(int(clicks[place])))
    return found


def _of_user(retriever: Retriever, pair: _Pair, request: ExplainRequest) -> dict[str, Any]:
    encoder, users = retriever.encoder, retriever.users
    score = _score(pair.user_vector, pair.item_vector)

    def adds(other: AskingUser) -> float:
        return score - _score(other.vector(encoder), pair.item_vector)

    def without(name: str) -> AskingUser:
        features = {**request.features, name: None}
        return users.asking(request.user_id, features, request.recent, pair.stored)

    nobody = encoder.user_id_embeddings[UNKNOWN_ROW][None]
    return {
        "id": adds(pair.user._replace(embedding=nobody)),
        "recent": adds(pair.user._replace(clicks=pair.user.clicks[:0])),
        "features": {f.name: adds(without(f.name)) for f in encoder.user_features.fields},
    }


def _of_item(retriever: Retriever, pair: _Pair) -> dict[str, Any]:
    encoder, parts = retriever.encoder, retriever.space.parts(pair.number)

    def vector(of: ItemParts) -> FloatArray:
        return encoder.item_vector(of.embedding, of.profile, of.popularity)

    score = _score(pair.user_vector, vector(parts))

    def adds(other: ItemParts) -> float:
        return score - _score(pair.user_vector, vector(other))

    spec: FeatureSpec = encoder.item_features
    nothing = spec.missing(1)

    def without(name: str) -> ItemParts:
        return parts._replace(profile=with_fields(spec, parts.profile, nothing, {name}))

    has_popularity = retriever.base.manifest.scoring.has_popularity
    return {
        "id": adds(parts._replace(embedding=encoder.item_embedding(-1))),
        "popularity": adds(parts._replace(popularity=np.float32(0))) if has_popularity else 0.0,
        "features": {field.name: adds(without(field.name)) for field in spec.fields},
    }

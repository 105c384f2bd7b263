"""Ways to keep a model fresh, to be compared over the same clicks from the same base generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

__all__ = ["STRATEGIES", "LivePopularity", "Strategy"]

Positive = Annotated[float, msgspec.Meta(gt=0)]


class LivePopularity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A popularity coordinate that follows the stream, in place of the generation's own.

    As the generation's: weight x temperature x log(decayed clicks + smoothing), but as of the last
    publish instead of the cut.
    """

    weight: Positive = 1.0
    """Weight of the log in the logit."""
    half_life_h: Positive = 0.25
    """Hours after which a click counts half."""
    smoothing: Positive = 0.05
    """Clicks that every item is taken to have had."""


class Strategy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What happens between the base generation and the end of the stream."""

    nights: bool
    """Train a full update after every live day."""
    increments: bool
    """Learn from the stream within the day."""
    publish_every_s: Positive = 1800.0
    """Simulated seconds between two deltas."""
    new_items: bool = True
    """Whether items that the base does not know are served as soon as a delta brings them."""
    popularity: LivePopularity | None = None
    """None: the generation's own coordinate where it has one, as of its cut."""
    night_s: Annotated[float, msgspec.Meta(ge=0)] = 1800.0
    """Simulated seconds from the end of a day until the generation that learned it is live."""


STRATEGIES: Final[Mapping[str, Strategy]] = {
    "full_only": Strategy(nights=True, increments=False),
    "increments_only": Strategy(nights=False, increments=True),
    "full_and_increments": Strategy(nights=True, increments=True),
}
"""The three ways to use the two kinds of update; popularity lists are compared beside them."""

"""A log through the whole loop in simulated time: night by night, and within the day."""

from twotower.replay.nights import (
    BASELINES,
    KS,
    ReplayedDay,
    ReplayedLog,
    ScoredNight,
    generation_scorer,
    replay_nights,
    score_baselines,
)

__all__ = [
    "BASELINES",
    "KS",
    "ReplayedDay",
    "ReplayedLog",
    "ScoredNight",
    "generation_scorer",
    "replay_nights",
    "score_baselines",
]

"""The example log: labelled examples in the order in which the label join emitted them.

What the event log is for events, this is for examples: the n-th one has offset n, for all readers
and for good, and a reader owns its offset. `twotower join` writes it.
"""

from twotower.data.example_log.columns import (
    CANDIDATE,
    EXAMPLE_KINDS,
    IMPRESSION,
    LATE_POSITIVE,
    JoinedExamples,
    concatenate_examples,
    no_examples,
)
from twotower.data.example_log.manifest import ExampleManifest, ShardSpan
from twotower.data.example_log.reader import ExampleLog

__all__ = [
    "CANDIDATE",
    "EXAMPLE_KINDS",
    "IMPRESSION",
    "LATE_POSITIVE",
    "ExampleLog",
    "ExampleManifest",
    "JoinedExamples",
    "ShardSpan",
    "concatenate_examples",
    "no_examples",
]

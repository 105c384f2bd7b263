"""The label join: events of the log become labelled examples, in event time under a watermark."""

from twotower.data.label_join.settings import JoinSettings

__all__ = ["JoinSettings"]

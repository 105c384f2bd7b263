"""The index's recall on what is really asked: now and then a recent request is searched exactly.

Publishing measures the recall of an index once, on probe users; this goes on measuring, on users as
they are now and with everything that the day laid over the index. It runs beside the event loop.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from twotower.errors import TwoTowerError
from twotower.index.interface import TunableIndex
from twotower.index.tuning import num_found
from twotower.serving.messages import RetrieveRequest
from twotower.serving.metrics import Metrics
from twotower.serving.retriever import Retriever

__all__ = ["RecallWatch"]


class RecallWatch:
    """Samples one request at a time. For one thread."""

    def __init__(
        self, every_s: float, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Wait `every_s` between two samples; 0 takes none."""
        self._every_s = every_s
        self._metrics = metrics
        self._clock = clock
        self._due_s = clock()

    def look(self, retriever: Retriever, requests: Sequence[RetrieveRequest]) -> None:
        """Take a sample if one is due; an index that looks at every item needs none."""
        index = retriever.index
        is_due = self._every_s > 0 and self._clock() >= self._due_s
        if not (is_due and requests and isinstance(index, TunableIndex)):
            return
        self._due_s = self._clock() + self._every_s
        # what was asked of another generation, or of a server that is lost, is no sample
        with contextlib.suppress(TwoTowerError):
            self._sample(retriever, index, requests[-1])

    def _sample(self, retriever: Retriever, index: TunableIndex, request: RetrieveRequest) -> None:
        user = retriever.users.asking(request.user_id, request.features, request.recent)
        vector, k = user.vector(retriever.encoder), max(1, min(request.k, len(index)))
        exact = index.search_exactly(vector, k)
        self._metrics.recall_sampled(*num_found(index.search(vector, k), exact))

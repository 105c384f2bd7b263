"""Gate: no number is NaN or infinite. The one gate that stops the publish: no index holds such."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.errors import GateRefused
from twotower.publishing.gates.gate import at_most
from twotower.publishing.manifest import GateResult, refusal

__all__ = ["check_finite"]


def check_finite(arrays: Mapping[str, npt.NDArray[Any]]) -> GateResult:
    """Count NaN and infinite values in all floating-point arrays.

    Raises:
        GateRefused: there is one; nothing may be published.
    """
    counts = {
        name: int(np.count_nonzero(~np.isfinite(array)))
        for name, array in arrays.items()
        if array.dtype.kind == "f"
    }
    result = at_most("finite", float(sum(counts.values())), 0.0)
    if not result.passed:
        worst = max(counts, key=lambda name: counts[name])
        raise GateRefused(
            f"{refusal([result])} values that are NaN or infinite, most of them in '{worst}'; "
            "nothing was published; the live generation is unchanged"
        )
    return result

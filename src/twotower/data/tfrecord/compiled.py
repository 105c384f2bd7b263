"""Machine code of the loops, made by numba once and kept on disk.

Made when a loop is first called, in seconds; every later process loads it in a fraction of one. It
is kept beside the source, or in the user's cache folder where that cannot be written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ["compiled"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Return `function` as machine code that lets other threads run.

    Where no folder can be written each process makes its own: slower to start, nothing else.
    """
    import numba

    try:
        made = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no place to keep it
        made = numba.njit(nogil=True)(function)
    return cast(_Function, made)

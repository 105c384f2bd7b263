"""Memory and instructions, as the compiled loops use them: what an indexed array would cost.

An address is an int64. A loop that hands arrays on to its parts counts references to them at every
call, which on rows of a few hundred bytes takes longer than the work. Nothing here is checked: the
loops stay within the arrays whose addresses they took.
"""

from __future__ import annotations

from collections.abc import Callable
from platform import machine
from typing import Any, Final

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

__all__ = [
    "HAS_CRC32C",
    "add_byte",
    "add_word",
    "bits",
    "load_byte",
    "load_half",
    "load_word",
    "store_byte",
    "store_half",
    "store_word",
]

_BYTE: Final = ir.IntType(8)
_HALF: Final = ir.IntType(32)
_WORD: Final = ir.IntType(64)


def _loader(size: ir.IntType, kind: Any) -> Any:
    @intrinsic
    def load(typing: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.load(builder.inttoptr(values[0], size.as_pointer()), align=1)

        return kind(types.int64), code

    return load


def _storer(size: ir.IntType, kind: Any) -> Any:
    @intrinsic
    def store(typing: Any, address: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            place = builder.inttoptr(values[0], size.as_pointer())
            builder.store(values[1], place, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, kind), code

    return store


load_byte: Final = _loader(_BYTE, types.uint8)
load_half: Final = _loader(_HALF, types.uint32)
load_word: Final = _loader(_WORD, types.uint64)
store_byte: Final = _storer(_BYTE, types.uint8)
store_half: Final = _storer(_HALF, types.uint32)
store_word: Final = _storer(_WORD, types.uint64)


def _bits(typing: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    """Return how many bits a number takes, at least 1."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        at_least_one = builder.or_(values[0], _WORD(1))
        return builder.sub(_WORD(64), builder.ctlz(at_least_one, cgutils.true_bit))

    return types.uint64(types.uint64), code


bits: Final[Any] = intrinsic(_bits)


def _has_crc32c() -> bool:
    """Return whether the machine that numba compiles for has the checksum as an instruction."""
    chosen: Any = config
    is_host = chosen.CPU_NAME is None and chosen.CPU_FEATURES is None
    is_known = machine() in ("x86_64", "AMD64")
    return is_host and is_known and bool(llvmlite.binding.get_host_cpu_features().get("crc32"))


HAS_CRC32C: Final = _has_crc32c()
"""Where it is False, no loop that has `add_word` or `add_byte` may be compiled."""


def _crc32c(name: str, state: ir.IntType, size: ir.IntType, kind: Any) -> Any:
    @intrinsic
    def add(typing: Any, crc: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            made = ir.FunctionType(state, [state, size])
            function = cgutils.get_or_insert_function(builder.module, made, name)  # type: ignore[no-untyped-call]
            before = values[0] if state is _WORD else builder.trunc(values[0], state)
            after = builder.call(function, [before, values[1]])
            return after if state is _WORD else builder.zext(after, _WORD)

        return types.uint64(types.uint64, kind), code

    return add


add_word: Final = _crc32c("llvm.x86.sse42.crc32.64.64", _WORD, _WORD, types.uint64)
add_byte: Final = _crc32c("llvm.x86.sse42.crc32.32.8", _HALF, _BYTE, types.uint8)
"""Go on with a CRC-32C, in the lower half of a word, over 8 bytes or over 1."""

"""From a body to the struct that its route documents; what does not fit is named by its path."""

from __future__ import annotations

import re
from typing import Final, Generic, TypeVar

import msgspec

from twotower.errors import suggestion
from twotower.serving.problems import Fault, RefusedRequest

__all__ = ["BodyDecoder"]

T = TypeVar("T", bound=msgspec.Struct)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


class BodyDecoder(Generic[T]):
    """Decodes the bodies of one route."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._fields = list(kind.__struct_fields__)

    def decode(self, body: bytes | msgspec.Raw) -> T:
        """Return what `body` holds.

        Raises:
            RefusedRequest: it is no JSON (400), or not what the route takes (422, with the path).
        """
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            fault = self._fault(str(error))
            raise RefusedRequest(422, f"{fault.detail} at {fault.path}", faults=[fault]) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RefusedRequest(400, f"expected a JSON object as the body: {error}") from None

    def _fault(self, message: str) -> Fault:
        """Put msgspec's message into the house's form: where, expected, found."""
        text, _, place = message.partition(" - at ")
        path = place.strip("`") or "$"
        if unknown := _UNKNOWN.fullmatch(text):
            name = unknown[1]
            known = f"; known: {', '.join(self._fields)}{suggestion(name, self._fields)}"
            return Fault(f"{path}.{name}", f"unknown field '{name}'{known if path == '$' else ''}")
        text = text.replace("`", "'").replace(", got ", ", found ")
        return Fault(path, f"{text[:1].lower()}{text[1:]}")

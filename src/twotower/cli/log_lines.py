"""Log records as JSON, one a line, for whoever collects them.

A record's message is an event and named values, `serving generation=%s sequence=%d`. Its template
and arguments are read, not the text made of them, so that a value may hold anything.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Final

import msgspec

__all__ = ["JsonLines"]

_PART: Final = re.compile(r"(?:(\w+)=)?(%[-+ #0]*\d*(?:\.\d+)?[a-zA-Z])|(\w+)=('[^']*'|\S+)")
"""A placeholder, with its name where it has one; or a name with its value."""
_STANDARD: Final = logging.LogRecord("", 0, "", 0, "", (), None).__dict__.keys() | {"message"}


class JsonLines(logging.Formatter):
    """Formats `ts`, `level`, `event` and the named values, and what else the record carries."""

    def __init__(self, process: str | None = None) -> None:
        """`process` is named in every line, if given."""
        super().__init__()
        self._always = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "ts": moment.isoformat("T", "milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            **_event(record),
            **self._always,
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def _event(record: logging.LogRecord) -> dict[str, Any]:
    """Return the event and the values of a record by their names."""
    arguments = record.args if isinstance(record.args, tuple) else (record.args,)
    values, found = iter(arguments), dict[str, Any]()
    template = str(record.msg)
    try:
        texts = list(_texts(template, values, found))
    except (StopIteration, TypeError, ValueError):  # not of our form: as any other logger has it
        return {"event": record.getMessage()}
    return {"event": " ".join(" ".join(texts).split()), **found}


def _texts(template: str, values: Iterator[Any], found: dict[str, Any]) -> Iterator[str]:
    """Yield what has no name; put what has one into `found`."""
    place = 0
    for part in _PART.finditer(template):
        yield template[place : part.start()]
        place = part.end()
        name, placeholder, given_name, given = part.groups()
        if given_name:
            found[given_name] = given.strip("'")
            continue
        value = next(values, _NOTHING)
        if value is _NOTHING:
            raise ValueError
        if name:
            found[name] = _plain(value)
        else:
            yield placeholder % value
    yield template[place:]


_NOTHING: Final = object()


def _plain(value: Any) -> Any:
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return value if is_plain else str(value)

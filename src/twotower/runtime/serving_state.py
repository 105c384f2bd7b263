"""What a running server says of itself, whoever started it: its `/readyz`."""

from __future__ import annotations

import http.client

import msgspec

from twotower.errors import DataError

__all__ = ["ServedByWorker", "ServingState", "ask_server"]

_TIMEOUT_S = 2.0


class ServedByWorker(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker serves."""

    pid: int
    state: str
    generation: str | None = None
    sequence: int | None = None
    delta: int | None = None
    problem: str | None = None


class ServingState(msgspec.Struct, frozen=True, kw_only=True):
    """The server's answer."""

    status: str
    """`ready` or `not ready`."""
    workers: list[ServedByWorker]


def ask_server(host: str, port: int) -> ServingState | None:
    """Return what the server at an address says, None where nobody listens.

    Raises:
        DataError: somebody listens who is no server of ours.
        OSError: it does not answer in time.
    """
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return msgspec.json.decode(connection.getresponse().read(), type=ServingState)
    except ConnectionRefusedError:
        return None
    except (http.client.HTTPException, msgspec.MsgspecError) as error:
        raise DataError(
            f"expected a server of this project at {host}:{port}, found another one: {error}"
        ) from error
    finally:
        connection.close()

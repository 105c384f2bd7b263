"""Where a process may listen: on this machine freely, beyond it only with keys."""

from __future__ import annotations

import ipaddress
import socket
import time
from pathlib import Path
from typing import Final

from twotower.errors import ConfigError
from twotower.serving.keys import read_keys

__all__ = ["bind", "check_reach"]

_BACKLOG: Final = 2048


def check_reach(host: str, data_path: Path, *, insecure: bool) -> bool:
    """Return whether requests must bring a key; refuse to be open to other machines.

    Args:
        host: Where the process is to listen.
        data_path: The project's data folder, which has the keys.
        insecure: Let other machines in also while there is no key.

    Raises:
        ConfigError: `host` is no address, or other machines reach it and there is no active key.
        CorruptArtifact: the file of the keys is damaged.
    """
    addresses = {str(info[4][0]).split("%")[0] for info in _resolve(host, 0)}
    is_local = all(ipaddress.ip_address(address).is_loopback for address in addresses)
    keys = read_keys(data_path)
    if keys is not None and keys.active(int(time.time() * 1000)):
        return True
    if is_local or insecure:
        return keys is not None
    raise ConfigError(
        f"expected an API key, because other machines can reach {host!r}, found none that is "
        "active; nothing was started; make one with: twotower keys create NAME --scope retrieve; "
        "or listen on 127.0.0.1, or let everybody in with --insecure"
    )


def _resolve(host: str, port: int) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except OSError as error:
        raise ConfigError(f"expected an address to listen on, found {host!r}: {error}") from error


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens there and does not block.

    Raises:
        ConfigError: the address cannot be bound.
    """
    family, _, _, _, address = _resolve(host, port)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; nothing was started; "
            "choose another with --port, or --port 0 for a free one"
        ) from error
    listener.setblocking(False)
    return listener

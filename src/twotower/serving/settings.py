"""Settings of the server and of the collector; flags of their commands win over them."""

from __future__ import annotations

from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec

__all__ = ["CollectorSettings", "ProfileSettings", "ServingSettings"]

Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
_REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")


class ProfileSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where stored profiles of users are looked up."""

    store: Literal["generation", "redis"] = "generation"
    """The mapped files of the generation, or a Redis that many hosts share; fill it with
    `twotower profiles fill`."""
    url: str = "redis://127.0.0.1:6379/0"
    """Of Redis; `rediss://` for TLS. A password belongs into `TWOTOWER_SERVING__PROFILES__URL`, as
    in `redis://:PASSWORD@host:6379/0`, and is never shown."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.02
    """How long a request waits for Redis; then it is answered from what the generation has. While
    it waits it counts as one that waits to be answered, so a Redis that hangs looks like overload:
    keep this short."""
    prefix: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "twotower:profile:"
    """Of the keys in Redis; the user's ID follows."""

    def __post_init__(self) -> None:
        """Refuse a URL that names no Redis, without repeating it: it may hold a password."""
        if not self.url.startswith(_REDIS_SCHEMES):
            raise ValueError(f"expected a URL that begins with {', '.join(_REDIS_SCHEMES)}")
        try:
            urlsplit(self.url).port  # noqa: B018  # reading it is the check
        except ValueError:
            raise ValueError(
                "expected a URL of Redis with host and port, found another; in a password "
                "percent-encode what is neither letter nor digit"
            ) from None


class ServingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the server listens, how it follows what is live, and what it refuses."""

    host: str = "127.0.0.1"
    """Address to listen on; beyond this machine there must be an API key, or `--insecure`."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080
    """0 takes a free one."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    """Processes, each with one event loop; one for each core is right."""
    threads: Positive = 1
    """Threads of one tower call; more workers are better than more threads."""
    poll_s: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.25
    """How often a worker looks at what is live, and at the API keys."""
    retry_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 5.0
    """How long a generation that could not be loaded is left alone before the next attempt."""
    warm_requests: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 50
    """Recent requests of this worker, kept in memory, that warm the next generation."""
    user_state_events: Annotated[int, msgspec.Meta(ge=0)] = 5_000_000
    """Newest events of the log from which recent clicks and seen items are brought up to date,
    about 30 bytes each in every worker; 0: users are known as of the generation's cut only."""
    recall_sample_every_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 60.0
    """How often a worker searches its last request exactly, too, to measure the index's recall; a
    scan of all vectors, beside the event loop; 0: never."""
    body_limit_bytes: Positive = 1_000_000
    """Largest body of a request."""
    body_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    """How long a request's body may take to arrive."""
    header_limit_bytes: Positive = 16_384
    """Longest request line and headers of a request together."""
    header_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    """How long they may take to arrive."""
    max_connections: Positive = 4096
    """Open connections of a worker, idle ones too; never more than the system lets it open."""
    max_in_flight: Positive = 256
    """Requests of a worker that were read and are not answered; what comes on top gets 503."""
    max_wait_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 0.1
    """How long a request may wait for its turn once overload is noticed; longer ones get 503."""
    overload_degrades: bool = True
    """Before requests are refused, search with half the effort, then return fewer items."""
    overload_k: Positive = 20
    """The most items of an answer in the second step of overload."""
    trace_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Share of the retrievals whose spans go to OpenTelemetry, if their trace does not decide."""
    key_rate_per_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Requests a second that each API key may make of a worker; 0: any number."""
    key_rate_burst: Positive = 100
    """Requests that a key may make at once after a pause."""
    keep_alive_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 30
    """How long an idle connection is kept."""
    drain_delay_s: Seconds = 5.0
    """After SIGTERM: how long requests are still taken, so that balancers see `/readyz` first."""
    drain_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 20.0
    """After that: how long running requests may take to finish."""
    profiles: ProfileSettings = ProfileSettings()


class CollectorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where events are taken, and how many at once."""

    host: str = "127.0.0.1"
    """Address to listen on; beyond this machine there must be an API key, or `--insecure`."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8081
    """0 takes a free one."""
    body_limit_bytes: Positive = 8_000_000
    """Largest body of a request."""
    body_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    """How long a request's body may take to arrive."""
    waiting_limit_bytes: Positive = 64_000_000
    """Bodies that may wait for the disk together; what comes on top is told to come again (429)."""
    header_limit_bytes: Positive = 16_384
    """Longest request line and headers of a request together."""
    header_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0
    """How long they may take to arrive."""
    max_connections: Positive = 4096
    """Open connections, idle ones too; never more than the system lets the process open."""
    remembered_keys: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    """Receipts that are kept in memory for bodies that come again under their `Idempotency-Key`,
    the newest, together at most 16 MB; 0: none."""
    writers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    """Requests that are decoded and written at the same time; those that wait share one fsync."""
    keep_alive_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 30
    """How long an idle connection is kept."""
    drain_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 20.0
    """After SIGTERM: how long running requests may take to finish."""

"""The two clients. Their methods are made of `twotower.client.calls` and
`twotower.client.admin_calls`, so they cannot differ."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import httpx
from tenacity import AsyncRetrying, Retrying

from twotower.client import admin_calls, calls
from twotower.client.attempts import Attempts, Options
from twotower.client.call import Call

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncClient", "Client"]

T = TypeVar("T")
P = ParamSpec("P")
M = TypeVar("M", bound=Callable[..., object])
_TIMEOUT_S: Final = 5.0
_RETRIES: Final = 3


def _blocking(make: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """Return the method that makes a call and waits for its answer."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(make(*args, **kwargs))

    return _described(method, make)


def _awaited(make: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Awaitable[T]]:
    """Return the method that makes a call and returns a promise of its answer."""

    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        return self._run(make(*args, **kwargs))

    return _described(method, make)


def _described(method: M, make: Callable[..., object]) -> M:
    """Give a method the name, the documentation and the arguments of what it is made of."""
    signature = inspect.signature(make)
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    whole = signature.replace(parameters=[this, *signature.parameters.values()])
    for name, value in (("__name__", make.__name__), ("__doc__", make.__doc__)):
        setattr(method, name, value)
    vars(method)["__signature__"] = whole
    return method


class _Configured:
    """How calls are made; both clients begin with it."""

    def __init__(
        self, api_key: str | None, timeout_s: float, retries: int, headers: Mapping[str, str] | None
    ) -> None:
        key = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._options = Options(timeout_s, retries, {**key, **(headers or {})})

    def with_options(
        self,
        *,
        timeout_s: float | None = None,
        retries: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Return a client over the same connections whose calls differ in what is given.

        Closing either closes both.
        """
        old, other = self._options, copy.copy(self)
        other._options = Options(
            timeout_s=old.timeout_s if timeout_s is None else timeout_s,
            retries=old.retries if retries is None else retries,
            headers={**old.headers, **(headers or {})},
        )
        return other


class Client(_Configured):
    """Asks a server over kept connections. Safe for threads; use it as a context manager."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        timeout_s: float = _TIMEOUT_S,
        retries: int = _RETRIES,
        headers: Mapping[str, str] | None = None,
        **http: Any,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: Where `twotower serve` listens.
            api_key: Sent with every request.
            timeout_s: For a call as a whole: its attempts and the pauses between them.
            retries: How often a call that may be repeated is tried again.
            headers: Sent with every request, such as `traceparent`.
            http: What else `httpx.Client` takes: `verify`, `limits`, `transport`.
        """
        super().__init__(api_key, timeout_s, retries, headers)
        self._http = httpx.Client(base_url=url, **http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _run(self, call: Call[T]) -> T:
        attempts = Attempts(call, self._options)
        answer: T = Retrying(**attempts.policy())(self._once, attempts)
        return answer

    def _once(self, attempts: Attempts[T]) -> T:
        request = attempts.request(self._http)
        try:
            response = self._http.send(request)
        except httpx.HTTPError as error:
            raise attempts.failure(error) from error
        return attempts.answer(response)

    retrieve = _blocking(calls.retrieve)
    retrieve_batch = _blocking(calls.retrieve_batch)
    similar = _blocking(calls.similar)
    explain = _blocking(calls.explain)
    events = _blocking(calls.events)
    list_generations = _blocking(admin_calls.list_generations)
    show_generation = _blocking(admin_calls.show_generation)
    activate = _blocking(admin_calls.activate)
    roll_back = _blocking(admin_calls.roll_back)
    pin = _blocking(admin_calls.pin)
    unpin = _blocking(admin_calls.unpin)
    list_items = _blocking(admin_calls.list_items)
    add_items = _blocking(admin_calls.add_items)
    withdraw_item = _blocking(admin_calls.withdraw_item)
    restore_items = _blocking(admin_calls.restore_items)
    health = _blocking(calls.health)
    readiness = _blocking(calls.readiness)


class AsyncClient(_Configured):
    """The same for asyncio: each method returns what is awaited."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        timeout_s: float = _TIMEOUT_S,
        retries: int = _RETRIES,
        headers: Mapping[str, str] | None = None,
        **http: Any,
    ) -> None:
        """See `Client`; further arguments are those of `httpx.AsyncClient`."""
        super().__init__(api_key, timeout_s, retries, headers)
        self._http = httpx.AsyncClient(base_url=url, **http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _run(self, call: Call[T]) -> T:
        attempts = Attempts(call, self._options)
        answer: T = await AsyncRetrying(**attempts.policy())(self._once, attempts)
        return answer

    async def _once(self, attempts: Attempts[T]) -> T:
        request = attempts.request(self._http)
        try:
            response = await self._http.send(request)
        except httpx.HTTPError as error:
            raise attempts.failure(error) from error
        return attempts.answer(response)

    retrieve = _awaited(calls.retrieve)
    retrieve_batch = _awaited(calls.retrieve_batch)
    similar = _awaited(calls.similar)
    explain = _awaited(calls.explain)
    events = _awaited(calls.events)
    list_generations = _awaited(admin_calls.list_generations)
    show_generation = _awaited(admin_calls.show_generation)
    activate = _awaited(admin_calls.activate)
    roll_back = _awaited(admin_calls.roll_back)
    pin = _awaited(admin_calls.pin)
    unpin = _awaited(admin_calls.unpin)
    list_items = _awaited(admin_calls.list_items)
    add_items = _awaited(admin_calls.add_items)
    withdraw_item = _awaited(admin_calls.withdraw_item)
    restore_items = _awaited(admin_calls.restore_items)
    health = _awaited(calls.health)
    readiness = _awaited(calls.readiness)

"""Code of a request that runs with `current_identity` set, while the thread that runs it never has it set."""

from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from typing import Generic, ParamSpec, TypeVar

from authsvc.client.identity import Identity, current_identity

P = ParamSpec("P")
T = TypeVar("T")


class IdentityContext:
    """A copy of the context, with `current_identity` set.

    Args:
        identity: Who the request is from; None on a public path.
    """

    def __init__(self, identity: Identity | None) -> None:
        self._context = copy_context()
        self._context.run(current_identity.set, identity)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the context."""
        return self._context.run(function, *args, **kwargs)

    def iterate(self, items: Iterable[T]) -> "BoundIterator[T]":
        """Return an iterator that makes each item in the context."""
        return BoundIterator(self, items)


class BoundIterator(Generic[T]):
    """An iterator whose every step, `close` included, runs in the context of its request."""

    def __init__(self, context: IdentityContext, items: Iterable[T]) -> None:
        self._context = context
        self._items = items
        self._iterator = context.run(iter, items)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self._context.run(next, self._iterator)

    def close(self) -> None:
        """Close the items, where they can be closed."""
        if close := getattr(self._items, "close", None):
            self._context.run(close)

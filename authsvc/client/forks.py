"""What a fork does to clients: a gRPC channel that is live in the child ends in a crash or a hang.

- A Client closes its channels and ends its thread before the fork; both processes open anew at the next call.
- An AsyncClient cannot wait for its loop there, so in the child its calls raise RuntimeError.
"""

import os
import threading
import weakref
from typing import Protocol

MADE_BEFORE_FORK = (
    "this AsyncClient was in use when the process forked: make it in the worker, for instance in gunicorn's post_fork"
)


class _Abandonable(Protocol):
    def abandon(self, reason: str) -> None: ...


class _Forkable(Protocol):
    def before_fork(self) -> None: ...

    def after_fork(self) -> None: ...


_in_use: "weakref.WeakSet[_Abandonable]" = weakref.WeakSet()
_forkable: "weakref.WeakSet[_Forkable]" = weakref.WeakSet()
_forking: list[_Forkable] = []
_kept: list[object] = []
_lock = threading.RLock()
"""Held during a fork: of two threads that fork, one must not call what the other has called."""


def watch(client: _Abandonable) -> None:
    """Abandon a client in the child of a fork, for it has channels."""
    _in_use.add(client)


def unwatch(client: _Abandonable) -> None:
    """Leave a client alone, for its channels are closed."""
    _in_use.discard(client)


def prepare(client: _Forkable) -> None:
    """Call a client before each fork, and after it in both processes."""
    _forkable.add(client)


def keep_for_ever(thing: object) -> None:
    """Never free an object, for its end would touch what is the parent's."""
    _kept.append(thing)


def _before() -> None:
    _lock.acquire()
    for client in list(_forkable):
        client.before_fork()
        _forking.append(client)


def _after() -> None:
    while _forking:
        _forking.pop().after_fork()
    _lock.release()


def _after_in_child() -> None:
    _after()
    for client in list(_in_use):
        client.abandon(MADE_BEFORE_FORK)
    _in_use.clear()


# Windows has no fork.
getattr(os, "register_at_fork", dict)(before=_before, after_in_parent=_after, after_in_child=_after_in_child)

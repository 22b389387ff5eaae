"""What a serving process settles with the operating system: its signals and its limit of open files."""

import asyncio
import os
import resource
import signal
from collections.abc import Callable

import structlog

OPEN_FILES = 4096
"""As many as the connections of both ports, those to the store, and a margin."""

_STDERR = 2

_log = structlog.get_logger(__name__)


def on_signals(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """Call `stop` at SIGTERM, SIGINT and the end of the terminal, and `reload` at another SIGHUP.

    The kernel sends SIGHUP when a terminal is closed, after which Ctrl-C cannot reach the process.
    """
    had_terminal = os.isatty(_STDERR)

    def hang_up() -> None:
        if had_terminal and not os.isatty(_STDERR):
            stop()
        else:
            reload()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, hang_up)


def raise_open_files_limit() -> None:
    """Raise the soft limit of open files as far as the hard one allows; warn where that is too low.

    Each connection is an open file. Shells and service managers set low soft limits for programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
        soft = ceiling
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        _log.warning("few_open_files", limit=soft, wanted=OPEN_FILES)

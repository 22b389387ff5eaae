"""An event loop on a thread of its own, which other threads run coroutines on."""

import asyncio
import concurrent.futures
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Closer: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


class LoopThread:
    """Starts at the first call, and again at the next one after a stop or a fork.

    Args:
        closer: The last coroutine that runs before the loop stops.
    """

    def __init__(self, closer: Closer) -> None:
        self._closer = closer
        # A client that the garbage collector finds during before_fork closes itself in the same thread.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._calls: set[concurrent.futures.Future[Any]] = set()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and return its result or raise its error."""
        try:
            with self._lock:
                call = asyncio.run_coroutine_threadsafe(coroutine, self._running_loop())
                self._calls.add(call)
        except (OSError, RuntimeError):  # closed, or no thread can be started
            coroutine.close()
            raise
        call.add_done_callback(self._calls.discard)
        try:
            return call.result()
        except BaseException:  # KeyboardInterrupt too: its caller has left
            call.cancel()
            raise
        finally:
            del call  # it holds the error, which holds this frame

    def post(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function on the loop, and do not wait for it; do nothing after close."""
        with self._lock:
            if not self._is_closed:
                self._running_loop().call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        """Let the calls in flight finish, run the closer, and end the thread for good."""
        with self._lock:
            self._is_closed = True
            self._stop()

    def before_fork(self) -> None:
        """Stop, and hold new calls back until after_fork; nothing of gRPC may be left."""
        self._lock.acquire()
        if self._thread is not None:
            self._stop()
            gc.collect()

    def after_fork(self) -> None:
        """Let calls begin again, in the parent and in the child."""
        self._lock.release()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._is_closed:
            raise RuntimeError("the client is closed")
        if self._loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="authsvc-client", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more: the next call tries again
                loop.close()
                raise
            self._loop, self._thread = loop, thread
        return self._loop

    def _stop(self) -> None:
        if self._loop is None or self._thread is None or self._thread is threading.current_thread():
            return
        concurrent.futures.wait(list(self._calls))
        asyncio.run_coroutine_threadsafe(self._closer(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None

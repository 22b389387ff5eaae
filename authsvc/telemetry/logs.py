"""Structured logs: one line per event, to stderr, with the trace id, span id and caller of its request.

No line holds a password, token, key or hash, nor an email in clear: `email_digest` replaces it.
"""

import functools
import hashlib
import hmac
import logging
import secrets
import sys
import threading
from types import TracebackType
from typing import Protocol, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from authsvc.request_context import caller, trace
from authsvc.telemetry.log_queue import COUNT_DROPPED, Kind, LogQueue, stderr_queue
from authsvc.telemetry.printable import escape

_LIBRARY_LEVEL = logging.WARNING
# It logs headers that are not UTF-8, such as a damaged API key, and a stack for each client that disconnects.
_SILENCED_LOGGER = "grpc._cython.cygrpc"
_DIGEST_LENGTH = 16
_digest_key = secrets.token_bytes(32)
_process_members: dict[str, object] = {}
_log = structlog.get_logger(__name__)


class _Output(Protocol):
    """Where lines go: a LogQueue, or a stream."""

    @property
    def is_terminal(self) -> bool: ...

    def put(self, kind: Kind, line: str) -> None: ...


class _Stream:
    """Writes each line at once. Counts and drops a line that cannot be written, for instance to a full disk.

    Args:
        stream: None where standard error was closed before the start.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.is_terminal = stream is not None and stream.isatty()

    def put(self, kind: Kind, line: str) -> None:
        if self._stream is None:
            COUNT_DROPPED[kind]()
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            COUNT_DROPPED[kind]()


class _LibraryHandler(logging.Handler):
    """Writes the lines of libraries. Counts and drops a line that cannot be formatted."""

    def __init__(self, output: _Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        try:
            self._output.put(Kind.EVENT, self.format(record))
        except Exception:  # noqa: BLE001 - whatever a library logs must not fail its caller
            COUNT_DROPPED[Kind.EVENT]()


class _LineLogger:
    """Writes the lines of this package.

    Going through logging would take three times as long.

    Args:
        output: Where they go.
        name: The logger's name, in each line.
        kind: Of the lines.
    """

    def __init__(self, output: _Output, name: str, kind: Kind = Kind.EVENT) -> None:
        self.name = name
        self._output = output
        self._kind = kind

    def debug(self, line: str) -> None:
        self._output.put(self._kind, line)

    info = warning = error = exception = debug


def email_digest(email: str) -> str:
    """Return a keyed digest of an email for logs: equal for equal emails, useless without the key."""
    return hmac.new(_digest_key, email.encode(), hashlib.sha256).hexdigest()[:_DIGEST_LENGTH]


def configure(
    log_format: str,
    level: str,
    digest_key: str | None = None,
    stream: TextIO | LogQueue | None = None,
    worker: int | None = None,
) -> None:
    """Set up logging for the process.

    Args:
        log_format: `console`, `json`, or empty: console on a terminal, else json.
        level: Name of the lowest level that is written, for instance `info`.
        digest_key: Key of email_digest, so that all processes write the same digests; None: random.
        stream: Where lines go; None: stderr, as they come.
        worker: Number of this worker, in each line; None: the process is not a worker.
    """
    global _digest_key, _process_members  # noqa: PLW0603 - one per process, as logging itself
    _process_members = {} if worker is None else {"worker": worker}
    if digest_key is not None:
        _digest_key = digest_key.encode()
    output = stream if isinstance(stream, LogQueue) else _Stream(stream or sys.stderr)
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.format_exc_info,
        _add_request,
        _add_process_members,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    is_console = log_format == "console" or (not log_format and output.is_terminal)
    renderers: list[Processor] = (
        [_escape_control_characters, structlog.dev.ConsoleRenderer(colors=output.is_terminal, repr_native_str=True)]
        if is_console
        else [structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=functools.partial(_LineLogger, output),
        cache_logger_on_first_use=False,
    )
    handler = _LibraryHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_LIBRARY_LEVEL)
    logging.getLogger(_SILENCED_LOGGER).setLevel(logging.CRITICAL)


def configure_service(log_format: str, level: str, digest_key: str | None, worker: int | None = None) -> None:
    """Set up logging for a process that serves: everything that Python prints becomes a line in the queue to stderr.

    Args:
        log_format: As for configure.
        level: As for configure.
        digest_key: As for configure.
        worker: As for configure.
    """
    configure(log_format, level, digest_key, stderr_queue(), worker=worker)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_unhandled
    threading.excepthook = lambda args: _log_unhandled(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_unhandled(args.exc_type, args.exc_value, args.exc_traceback)


def _log_unhandled(
    exception_class: type[BaseException], exception: BaseException | None, traceback: TracebackType | None
) -> None:
    """Log an exception that nothing handles: of the process, of a thread, or of a destructor."""
    _log.error("unhandled_exception", exc_info=(exception_class, exception, traceback))


def _escape_control_characters(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters, so that no text breaks a console line or controls the terminal. Values are quoted."""
    event["event"] = escape(str(event["event"]))
    if "exception" in event:
        event["traceback"] = event.pop("exception")  # ConsoleRenderer would print it on lines of its own
    return event


def _add_request(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    name, request = caller.get(None), trace.get(None)
    if name is not None:
        event["caller"] = name
    if request is not None:
        event["trace_id"] = request.trace_id
        event["span_id"] = request.span_id
    return event


def _add_process_members(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {**event, **_process_members}

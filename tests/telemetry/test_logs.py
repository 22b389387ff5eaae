import hashlib
import hmac
import io
import json
import logging
import sys
from contextvars import copy_context
from typing import Any

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from authsvc import request_context
from authsvc.telemetry import logs
from tests.e2e.process import environment, run
from tests.support import PASSWORD

NASTY = "a\nb\rc\x00d\x1b[2Je\x0bf\x0cg\x1ch\x7fi\x85j\u2028k\u2029l\u202em"
FORMATS = ["json", "console"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fail(password: str) -> None:
    raise LookupError(NASTY, len(password))


def configured(log_format: str, level: str = "debug", **options: Any) -> io.StringIO:
    stream: io.StringIO = options.pop("stream", io.StringIO())
    logs.configure(log_format, level, stream=stream, **options)
    return stream


def own_log() -> Any:
    return structlog.get_logger("authsvc.test")


def only_line(stream: io.StringIO) -> str:
    """Return the one line of a log, which has no character that a terminal would take for a line break."""
    text = stream.getvalue()
    assert text.endswith("\n")
    line = text[:-1]
    assert line.isprintable(), f"control characters in {line!r}"
    return line


def test_json_has_a_member_for_each_part_of_an_event() -> None:
    stream = configured("json")
    own_log().info("login", user_id="user-1", count=1, nothing=None)
    event = json.loads(only_line(stream))
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "login",
        "level": "info",
        "logger": "authsvc.test",
        "user_id": "user-1",
        "count": 1,
        "nothing": None,
    }


def test_console_has_the_same_for_people() -> None:
    stream = configured("console")
    own_log().warning("login", user_id="user-1")
    line = only_line(stream)
    assert "[warning  ] login" in line
    assert "user_id='user-1'" in line


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("value", [NASTY, [NASTY], {NASTY: NASTY}, NASTY.encode(), ValueError(NASTY)], ids=type)
def test_control_characters_in_a_value_break_no_line(log_format: str, value: object) -> None:
    stream = configured(log_format)
    own_log().info("login", value=value)
    assert "login" in only_line(stream)


@pytest.mark.parametrize("log_format", FORMATS)
@example(value=NASTY)
@example(value="\ud800")
@given(value=st.text(st.characters(codec=None)))
def test_no_text_breaks_a_line(log_format: str, value: str) -> None:
    stream = configured(log_format)
    own_log().info("login", value=value)
    logging.getLogger("library").warning("%s", value)
    first, second = stream.getvalue()[:-1].split("\n")
    assert first.isprintable()
    assert second.isprintable()


@pytest.mark.parametrize("log_format", FORMATS)
def test_messages_of_libraries_stay_on_their_line(log_format: str) -> None:
    stream = configured(log_format)
    logging.getLogger("some.library").warning("text %s", NASTY, extra={"more": NASTY})
    line = only_line(stream)
    assert "some.library" in line
    assert "more" in line


@pytest.mark.parametrize("log_format", FORMATS)
def test_tracebacks_stay_on_their_line_and_name_the_place(log_format: str) -> None:
    stream = configured(log_format)
    try:
        fail(PASSWORD)
    except LookupError:
        logging.getLogger("some.library").exception("failed\n")
    line = only_line(stream)
    assert "LookupError" in line
    assert "in fail" in line


@pytest.mark.parametrize("log_format", FORMATS)
def test_tracebacks_of_own_events_likewise(log_format: str) -> None:
    stream = configured(log_format)
    try:
        fail(PASSWORD)
    except LookupError:
        own_log().exception("failed")
    assert "LookupError" in only_line(stream)


@pytest.mark.parametrize("log_format", FORMATS)
def test_a_traceback_shows_no_variables(log_format: str) -> None:
    """A local variable may hold a password."""
    stream = configured(log_format, stream=Terminal() if log_format == "console" else io.StringIO())
    try:
        fail(PASSWORD)
    except LookupError:
        logging.getLogger("some.library").exception("failed")
    assert PASSWORD not in stream.getvalue()


@pytest.mark.parametrize("log_format", FORMATS)
def test_stacks_stay_on_their_line(log_format: str) -> None:
    stream = configured(log_format)
    logging.getLogger("some.library").warning("slow", stack_info=True)
    assert "Stack (most recent call last)" in only_line(stream)


@pytest.mark.parametrize("log_format", FORMATS)
def test_lines_of_a_request_have_its_trace_id_and_its_span_id(log_format: str) -> None:
    stream = configured(log_format)

    def serve() -> request_context.Trace:
        trace = request_context.start_trace()
        own_log().info("login")
        logging.getLogger("library").warning("slow")
        return trace

    trace = copy_context().run(serve)
    own_log().info("stopped")
    *of_request, last = stream.getvalue().splitlines()
    assert len(of_request) == 2
    assert all(trace.trace_id in line and trace.span_id in line for line in of_request)
    assert "trace_id" not in last
    assert "span_id" not in last


@pytest.mark.parametrize("log_format", FORMATS)
def test_lines_of_a_request_name_its_caller(log_format: str) -> None:
    stream = configured(log_format)
    reset = request_context.caller.set("checkout")
    own_log().info("login")
    request_context.caller.reset(reset)
    own_log().info("stopped")
    first, second = stream.getvalue().splitlines()
    assert "checkout" in first
    assert "caller" not in second


def test_lines_below_the_level_are_left_out_and_libraries_write_warnings_only() -> None:
    stream = configured("json", "error")
    own_log().warning("unseen")
    logging.getLogger("library").info("unseen")
    own_log().error("seen")
    logging.getLogger("library").warning("seen too")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["seen", "seen too"]


def test_debug_lines_of_libraries_are_never_written() -> None:
    """botocore logs credentials at level debug."""
    stream = configured("json", "debug")
    logging.getLogger("botocore").debug("headers")
    own_log().debug("own")
    assert json.loads(only_line(stream))["event"] == "own"


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("", io.StringIO(), True),
        ("", Terminal(), False),
        ("json", Terminal(), True),
        ("console", io.StringIO(), False),
    ],
    ids=["no terminal", "terminal", "json on a terminal", "console elsewhere"],
)
def test_without_a_format_a_terminal_decides(log_format: str, stream: io.StringIO, is_json: bool) -> None:  # noqa: FBT001
    configured(log_format, stream=stream)
    own_log().info("login")
    assert stream.getvalue().startswith("{") is is_json


def test_only_a_terminal_gets_colours() -> None:
    plain, terminal = configured("console"), Terminal()
    own_log().info("login")
    configured("console", stream=terminal)
    own_log().info("login")
    assert "\x1b[" not in plain.getvalue()
    assert "\x1b[" in terminal.getvalue()


def test_logs_go_to_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    logs.configure("json", "info")
    own_log().info("login")
    assert json.loads(only_line(stderr))["event"] == "login"


def test_lines_are_dropped_where_standard_error_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    logs.configure("json", "info")
    dropped = dropped_events()
    own_log().info("login")
    assert dropped_events() == dropped + 1


def dropped_events() -> float:
    return REGISTRY.get_sample_value("authsvc_log_lines_dropped_total", {"kind": "event"}) or 0.0


def test_configuring_again_replaces_what_was() -> None:
    first = configured("json")
    second = configured("json")
    own_log().info("login")
    assert first.getvalue() == ""
    assert only_line(second)


@pytest.fixture
def _own_digest_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_digest_key", b"x" * 32)


@pytest.mark.usefixtures("_own_digest_key")
def test_a_digest_replaces_an_address_and_needs_the_key() -> None:
    configured("json", digest_key="key")
    expected = hmac.new(b"key", b"alice@example.com", hashlib.sha256).hexdigest()[:16]
    assert logs.email_digest("alice@example.com") == expected
    assert logs.email_digest("bob@example.com") != expected
    configured("json", digest_key="other key")
    assert logs.email_digest("alice@example.com") != expected


@pytest.mark.usefixtures("_own_digest_key")
def test_without_a_key_digests_keep_the_random_one_of_the_process() -> None:
    before = logs.email_digest("alice@example.com")
    configured("json")
    assert logs.email_digest("alice@example.com") == before
    assert hashlib.sha256(b"alice@example.com").hexdigest()[:16] != before


EVERYTHING = """
import logging, threading, warnings
from authsvc.telemetry import logs

class Broken:
    def __del__(self):
        raise LookupError("in a destructor")

def fail():
    raise LookupError("in a thread")

logs.configure_service("json", "info", None, worker=7)
warnings.warn("deprecated")
logging.getLogger("library").warning("slow")
logging.getLogger("library").warning("%d", "no number")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
Broken()
fail()
"""


def test_all_that_a_service_prints_is_lines_of_its_log() -> None:
    """Python's own hooks write to sys.stderr, where a reader that stalls would block them."""
    done = run(sys.executable, "-c", EVERYTHING, environ=environment())
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line["level"], line["worker"]) for line in lines] == [
        ("py.warnings", "warning", 7),
        ("library", "warning", 7),
        *[("authsvc.telemetry.logs", "error", 7)] * 3,
    ]
    assert "deprecated" in lines[0]["event"]
    assert lines[1]["event"] == "slow"
    assert {line["event"] for line in lines[2:]} == {"unhandled_exception"}
    assert "in a thread" in lines[2]["exception"]
    assert "in a destructor" in lines[3]["exception"]
    assert "in <module>" in lines[4]["exception"]

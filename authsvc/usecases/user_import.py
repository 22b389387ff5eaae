"""Use case: import users from a file of JSON lines, several at a time."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from authsvc import fields, request_context
from authsvc.errors import EmailAlreadyExistsError, InvalidFieldError, OperatorError
from authsvc.tokens.json_members import DuplicateMemberError, unique_members
from authsvc.usecases.users import Users

CONCURRENCY = 32
PROGRESS_LINES = 1000
"""Lines between two progress reports."""
_MEMBERS = ("email", "role", "password_hash")


@dataclass(slots=True)
class ImportResult:
    """Counts of the lines so far."""

    created: int = 0
    already_there: int = 0
    wrong: int = 0

    @property
    def lines(self) -> int:
        """All lines."""
        return self.created + self.already_there + self.wrong

    def __str__(self) -> str:
        """Return the counts on one line."""
        return f"{self.created} created, {self.already_there} already there, {self.wrong} wrong"


class _WrongLineError(Exception):
    """A line cannot be imported; the text says why."""


async def import_users(
    users: Users,
    path: Path,
    report: Callable[[str], None],
    concurrency: int = CONCURRENCY,
    progress_lines: int = PROGRESS_LINES,
) -> ImportResult:
    """Create a user for each line whose address no user has yet.

    Args:
        users: Creates them.
        path: JSON objects, one per line: email, password_hash and, unless it is the default, role.
        report: Receives a text for each wrong line, and progress reports.
        concurrency: Lines that are imported at once.
        progress_lines: Lines between two progress reports.

    Raises:
        OperatorError: The file cannot be read.
        StoreUnavailableError: Some lines are imported; the file may be imported again.
    """
    try:
        lines = path.read_bytes().split(b"\n")  # noqa: ASYNC240 - no other task waits
    except OSError as error:
        raise OperatorError(f"{path}: cannot be read: {error.strerror}") from None
    job = _Import(users, enumerate(lines, start=1), report, progress_lines)
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(concurrency):
                tasks.create_task(job.work())
    except ExceptionGroup as group:
        report(f"stopped: {job.result}; the file may be imported again")
        raise group.exceptions[0] from None
    return job.result


class _Import:
    """One import, whose lines several tasks share."""

    def __init__(
        self, users: Users, lines: Iterator[tuple[int, bytes]], report: Callable[[str], None], progress_lines: int
    ) -> None:
        self.result = ImportResult()
        self._users = users
        self._lines = lines
        self._report = report
        self._progress_lines = progress_lines
        self._line_by_email: dict[str, int] = {}

    async def work(self) -> None:
        for number, line in self._lines:
            if line.strip():
                await self._import(number, line)
                if self.result.lines % self._progress_lines == 0:
                    self._report(f"{self.result.lines} lines: {self.result}")

    async def _import(self, number: int, line: bytes) -> None:
        try:
            members = _parse(line)
            self._refuse_duplicate(number, members["email"])
            with request_context.time_limit(request_context.COMMAND_DEADLINE_SECONDS):
                await self._users.import_user(**members)
        except EmailAlreadyExistsError:
            self.result.already_there += 1
        except (_WrongLineError, InvalidFieldError) as error:
            self.result.wrong += 1
            self._report(f"line {number}: {error}")
        else:
            self.result.created += 1

    def _refuse_duplicate(self, number: int, email: str) -> None:
        """Let the first line of an address win, not the fastest task."""
        first = self._line_by_email.setdefault(fields.normalize_email(email), number)
        if first != number:
            raise _WrongLineError(f"email: is the same as on line {first}")


def _parse(line: bytes) -> dict[str, str]:
    """Return a line's members, all of them strings."""
    try:
        value = json.loads(line.decode("utf-8-sig"), object_pairs_hook=unique_members)
    except DuplicateMemberError as error:
        raise _WrongLineError(str(error)) from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _WrongLineError("is not a JSON object in UTF-8")
    unknown = sorted(value.keys() - set(_MEMBERS))
    if unknown:
        raise _WrongLineError(f"{unknown[0]!r} is not one of {', '.join(_MEMBERS)}")
    members = {"role": "", **value}
    for name in _MEMBERS:
        if not isinstance(members.get(name), str):
            raise _WrongLineError(f"{name}: must be a string")
    return members

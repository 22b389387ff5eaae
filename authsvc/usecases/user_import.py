"""Importing users: a file of JSON lines becomes users, several at a time."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from authsvc import fields, request_context
from authsvc.errors import EmailAlreadyExistsError, InvalidFieldError, OperatorError
from authsvc.usecases.users import Users

CONCURRENCY = 32
PROGRESS_LINES = 1000
_MEMBERS = ("email", "role", "password_hash")


@dataclass(slots=True)
class ImportResult:
    """What became of the lines so far."""

    created: int = 0
    already_there: int = 0
    wrong: int = 0

    @property
    def lines(self) -> int:
        """How many there were."""
        return self.created + self.already_there + self.wrong

    def __str__(self) -> str:
        """Return the counts, in a line."""
        return f"{self.created} created, {self.already_there} already there, {self.wrong} wrong"


class _WrongLineError(Exception):
    """A line makes no user; the text says why."""


async def import_users(accounts: Users, path: Path, tell: Callable[[str], None]) -> ImportResult:
    """Create a user of each line, but for those whose address a user has already.

    Args:
        accounts: Where they are created.
        path: Its lines are JSON objects with email, password_hash and, where it is not the default one, role.
        tell: Is given a text for each wrong line, and now and then how far it has come.

    Raises:
        OperatorError: The file cannot be read.
        StoreUnavailableError: Some lines are imported; all may be imported again.
    """
    try:
        lines = path.read_bytes().split(b"\n")  # noqa: ASYNC240 - nobody else waits
    except OSError as error:
        raise OperatorError(f"{path}: cannot be read: {error.strerror}") from None
    running = _Import(accounts, enumerate(lines, start=1), tell)
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CONCURRENCY):
                tasks.create_task(running.work())
    except ExceptionGroup as group:
        tell(f"stopped: {running.result}; the file may be imported again")
        raise group.exceptions[0] from None
    return running.result


class _Import:
    """One import, whose lines several tasks take in turn."""

    def __init__(self, accounts: Users, lines: Iterator[tuple[int, bytes]], tell: Callable[[str], None]) -> None:
        self.result = ImportResult()
        self._accounts = accounts
        self._lines = lines
        self._tell = tell
        self._line_by_email: dict[str, int] = {}

    async def work(self) -> None:
        for number, line in self._lines:
            if line.strip():
                await self._import(number, line)
                if self.result.lines % PROGRESS_LINES == 0:
                    self._tell(f"{self.result.lines} lines: {self.result}")

    async def _import(self, number: int, line: bytes) -> None:
        try:
            members = _members(line)
            self._refuse_twice(number, members["email"])
            with request_context.time_limit(request_context.COMMAND_DEADLINE_SECONDS):
                await self._accounts.import_user(**members)
        except EmailAlreadyExistsError:
            self.result.already_there += 1
        except (_WrongLineError, InvalidFieldError) as error:
            self.result.wrong += 1
            self._tell(f"line {number}: {error}")
        else:
            self.result.created += 1

    def _refuse_twice(self, number: int, email: str) -> None:
        """Let the first line of an address win, not the fastest."""
        first = self._line_by_email.setdefault(fields.normal_email(email), number)
        if first != number:
            raise _WrongLineError(f"email: is that of line {first}")


def _members(line: bytes) -> dict[str, str]:
    """Return a line's members, each a text."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _WrongLineError("is no JSON object in UTF-8")
    unknown = sorted(value.keys() - set(_MEMBERS))
    if unknown:
        raise _WrongLineError(f"{unknown[0]!r} is none of {', '.join(_MEMBERS)}")
    members = {"role": "", **value}
    for name in _MEMBERS:
        if not isinstance(members.get(name), str):
            raise _WrongLineError(f"{name}: must be a text")
    return members

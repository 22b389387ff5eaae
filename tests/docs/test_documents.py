"""What the documents say about tests and settings is true."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from authsvc.config import ServeSettings

ROOT = Path(__file__).parents[2]
SECURITY = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", SECURITY)))


def answers() -> Iterator[tuple[str, str]]:
    """Each row of the table of requirements, with its answer."""
    _, _, table = SECURITY.partition("## Requirements\n")
    yield from re.findall(r"^\| ((?:ASVS|NIST|OWASP)-[^|]+?) \| .*? \| (.*) \|$", table, re.MULTILINE)


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_each_named_test_exists(path: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_each_requirement_is_met_by_a_test_or_says_why_not() -> None:
    rows = dict(answers())
    assert len(rows) > 50
    assert [row for row, answer in rows.items() if "::" not in answer and "**not met**" not in answer] == []


def test_every_requirement_that_a_test_names_is_answered() -> None:
    named = set()
    for path in (ROOT / "tests").rglob("*.py"):
        named |= set(re.findall(r"\b(?:ASVS|NIST|OWASP)-[A-Z0-9][\w.]*(?:-[a-e])?(?<!\.)", path.read_text()))
    answered = {row for rows, _ in answers() for row in rows.split(", ")}
    assert named - answered == set()


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    settings = {f"AUTHSVC_{setting.name.upper()}" for setting in fields(ServeSettings)}
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("guide.md", "operations.md"))
    named = set(re.findall(r"\bAUTHSVC_[A-Z_]+\b", pages))
    assert named == settings

"""The arithmetic of docs/deploy.md is right, and its task definition is JSON with settings that exist."""

import json
import re
from pathlib import Path

import pytest

from authsvc import config

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
TIMES = "\N{MULTIPLICATION SIGN}"
ROWS = re.findall(rf"^\| (.+?) \| ([\d.{TIMES}+ ]+) \| \**([\d.]+)\** \|$", PAGE, re.MULTILINE)


def result_of(arithmetic: str) -> float:
    """Return the sum of the products."""
    total = 0.0
    for term in arithmetic.split("+"):
        product = 1.0
        for factor in term.split(TIMES):
            product *= float(factor)
        total += product
    return total


@pytest.mark.parametrize(("item", "arithmetic", "dollars"), ROWS, ids=[item for item, _, _ in ROWS])
def test_dollars(item: str, arithmetic: str, dollars: str) -> None:
    assert f"{result_of(arithmetic):.2f}" == dollars


def test_every_row_with_dollars_is_checked() -> None:
    _, _, table = PAGE.partition("| Item | Arithmetic | Dollars |\n|---|---|---|\n")
    assert len(ROWS) == len(table.partition("\n\n")[0].splitlines()) == 17


def test_task_definition_has_settings_that_exist() -> None:
    (text,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    (container,) = json.loads(text)["containerDefinitions"]
    environ = {variable["name"]: variable["value"] for variable in container["environment"]}
    assert config.unknown_settings(environ) == []
    required = {line.split()[0] for line in config.describe().splitlines() if line.endswith("(required)")}
    assert required < environ.keys()

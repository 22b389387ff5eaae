"""Tables on DynamoDB engines, and the commands that administer them: `authsvc` and `aws dynamodb`."""

import contextlib
import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

from click.testing import Result

from tests import dynamodb
from tests.e2e.process import invoke
from tests.engines import Engine


@dataclass(frozen=True)
class Tables(dynamodb.Tables):
    """Tables of a test's own on an engine."""

    dynamodb: Any  # the tests write rows and definitions that its type forbids
    engine: Engine

    def authsvc(self, *arguments: str, stdin: str = "") -> Result:
        settings = {
            **self.engine.environ(),
            "AWS_ENDPOINT_URL_DYNAMODB": self.engine.endpoint_url,
            "AUTHSVC_STORE": "dynamodb",
            "AUTHSVC_TABLE_PREFIX": self.prefix,
        }
        return invoke(*arguments, stdin=stdin, **settings)

    def create(self) -> Result:
        created = self.authsvc("tables", "create")
        assert (created.exit_code, created.stderr) == (0, "")
        return created

    def wrong(self) -> str:
        """Return the only line of a check that is not ok."""
        check = self.authsvc("tables", "check")
        assert (check.exit_code, check.stderr) == (1, "")
        lines = [line for line in check.stdout.splitlines() if not line.startswith("ok ")]
        assert len(lines) == 1, check.stdout
        return lines[0]

    def is_good(self) -> bool:
        check = self.authsvc("tables", "check")
        return check.exit_code == 0 and all(line.startswith("ok ") for line in check.stdout.splitlines())

    def mend(self, line: str) -> None:
        """Do what a line's remedy says."""
        for step in line.partition(" Remedy: ")[2].split("; "):
            words = shlex.split(step[re.search(r"\b(aws|authsvc) ", step).start() :])  # type: ignore[union-attr]
            if words[0] == "authsvc":
                assert self.authsvc(*words[1:]).exit_code == 0
            else:
                self.aws(*words[2:])

    def aws(self, operation: str, *options: str) -> None:
        """Call what `aws dynamodb` would call."""
        if operation == "wait":
            self._wait(*options)
            return
        names = [_camel(option.removeprefix("--")) for option in options[::2]]
        values = [_value(option) for option in options[1::2]]
        getattr(self.dynamodb, operation.replace("-", "_"))(**dict(zip(names, values, strict=True)))

    def _wait(self, waiter: str, option: str, table: str) -> None:
        assert option == "--table-name"
        self.dynamodb.get_waiter(waiter.replace("-", "_")).wait(TableName=table)


def _camel(option: str) -> str:
    return "".join(word.capitalize() for word in option.split("-"))


def _value(text: str) -> Any:
    """Read a value as the AWS command line does."""
    with contextlib.suppress(ValueError):
        return json.loads(text)
    if "=" not in text:
        return text
    pairs = (pair.split("=") for pair in text.split(","))
    return {name: {"true": True, "false": False}.get(value, value) for name, value in pairs}

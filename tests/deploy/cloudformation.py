"""The CloudFormation template as a mapping: each intrinsic function is an object of its long form."""

from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).parents[2] / "deploy" / "cloudformation" / "tables.yaml"


class _Loader(yaml.SafeLoader):
    """Reads `!Sub x` as {"Fn::Sub": "x"} and `!GetAtt A.B` as {"Fn::GetAtt": "A.B"}."""


def _intrinsic(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    name = suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}"
    match node:
        case yaml.ScalarNode():
            return {name: loader.construct_scalar(node)}
        case yaml.SequenceNode():
            return {name: loader.construct_sequence(node, deep=True)}
    raise TypeError(f"!{suffix} of a mapping")


_Loader.add_multi_constructor("!", _intrinsic)


def read_template() -> dict[str, Any]:
    template: dict[str, Any] = yaml.load(TEMPLATE.read_text(), _Loader)  # noqa: S506 - a SafeLoader
    return template


def resources(kind: str) -> dict[str, dict[str, Any]]:
    """Return the properties of the resources of a type, by logical name."""
    found = read_template()["Resources"].items()
    return {name: resource["Properties"] for name, resource in found if resource["Type"] == kind}

"""The CloudFormation template and `authsvc tables create` make the same tables, and `tables check` accepts them."""

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import boto3
import pytest

from authsvc.errors import StoreUnavailableError
from authsvc.stores.dynamodb.client import DynamoDBClient
from authsvc.stores.dynamodb.tables import Tables, create_tables
from tests.deploy.cloudformation import TEMPLATE, read_template, resources
from tests.e2e.process import invoke
from tests.engines import Engine
from tests.engines.ministack import launch

DROPPED = re.compile(r"WRONG table \S+: (TTL on expires_at|point-in-time recovery): is off\. ")
"""What ministack's CloudFormation leaves out of a table, without a word."""
KEY = "arn:aws:kms:us-east-1:000000000000:key/1234"


class Names:
    """Has each operation's name in place of the operation."""

    def __getattr__(self, name: str) -> str:
        return name


class RecordingDynamoDB:
    """Creates tables at once, and keeps every request about each."""

    api = Names()

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Any]] = {}

    async def call(self, operation: str, *, TableName: str, **request: Any) -> Any:  # noqa: N803 - as AWS has it
        match operation:
            case "describe_table" if TableName not in self.tables:
                raise StoreUnavailableError("ResourceNotFoundException")
            case "describe_table":
                return {"Table": {"TableStatus": "ACTIVE"}}
            case "describe_time_to_live":
                return {"TimeToLiveDescription": {"TimeToLiveStatus": "DISABLED"}}
            case "create_table":
                self.tables[TableName] = {"TableName": TableName, **request}
            case _:  # update_time_to_live, update_continuous_backups
                self.tables[TableName].update(request)
        return {}


async def test_template_and_command_make_the_same_tables() -> None:
    dynamodb = RecordingDynamoDB()
    await create_tables(cast("DynamoDBClient", dynamodb), Tables("auth-"))
    of_template = list(resources("AWS::DynamoDB::Table").values())
    for table in of_template:
        table["TableName"] = table["TableName"]["Fn::Sub"].replace("${TablePrefix}", "auth-")
        assert table.pop("DeletionProtectionEnabled") == {"Ref": "DeletionProtection"}
    assert of_template == list(dynamodb.tables.values())


def test_no_table_is_deleted_with_the_stack() -> None:
    tables = [each for each in read_template()["Resources"].values() if each["Type"] == "AWS::DynamoDB::Table"]
    policies = {(table["DeletionPolicy"], table["UpdateReplacePolicy"]) for table in tables}
    assert (len(tables), policies) == (4, {("RetainExceptOnCreate", "Retain")})


def test_the_prefix_is_what_the_setting_accepts() -> None:
    parameter = read_template()["Parameters"]["TablePrefix"]
    assert re.fullmatch(parameter["AllowedPattern"], parameter["Default"])
    for prefix in ("", "a/b", "a b", "ä-", "x" * 201):
        assert not re.fullmatch(parameter["AllowedPattern"], prefix)
        settings = {"AUTHSVC_STORE": "dynamodb", "AWS_REGION": "us-east-1", "AUTHSVC_TABLE_PREFIX": prefix or "/"}
        assert "AUTHSVC_TABLE_PREFIX: must be" in invoke("tables", "check", **settings).stderr


@pytest.fixture(scope="module")
def aws() -> Iterator[Engine]:
    """An emulator of what the template needs."""
    with launch(services="cloudformation,dynamodb,iam") as engine:
        yield engine


def create_stack(aws: Engine, name: str, **parameters: str) -> dict[str, str]:
    """Create the template's stack, and return its outputs."""
    cloudformation = boto3.client("cloudformation", **aws.client_options())
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=TEMPLATE.read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    cloudformation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})
    (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


@pytest.mark.engines
def test_tables_check_accepts_the_stack(aws: Engine, table_prefix: str) -> None:
    outputs = create_stack(aws, "tables", TablePrefix=table_prefix, DeletionProtection="false")
    assert outputs["TablePrefix"] == table_prefix
    wrong = [line for line in check(aws, table_prefix) if not line.startswith("ok ")]
    assert [line for line in wrong if not DROPPED.match(line)] == []
    # What the emulator has dropped is in the template, as the first test shows.
    dynamodb = boto3.client("dynamodb", **aws.client_options())
    for properties in resources("AWS::DynamoDB::Table").values():
        table = properties["TableName"]["Fn::Sub"].replace("${TablePrefix}", table_prefix)
        for option in ("TimeToLiveSpecification", "PointInTimeRecoverySpecification"):
            if option in properties:
                operation = "time_to_live" if option.startswith("Time") else "continuous_backups"
                getattr(dynamodb, f"update_{operation}")(TableName=table, **{option: properties[option]})
    assert [line for line in check(aws, table_prefix) if not line.startswith("ok ")] == []


def check(aws: Engine, table_prefix: str) -> list[str]:
    settings = {
        **aws.environ(),
        "AWS_ENDPOINT_URL_DYNAMODB": aws.endpoint_url,
        "AUTHSVC_STORE": "dynamodb",
        "AUTHSVC_TABLE_PREFIX": table_prefix,
    }
    return invoke("tables", "check", **settings).stdout.splitlines()


PARAMETER = "arn:aws:ssm:us-east-1:000000000000:parameter/authsvc/keys"
READ, WRITE = ["ssm:GetParameter"], ["ssm:GetParameter", "ssm:GetParameterHistory", "ssm:PutParameter"]
CASES: dict[str, tuple[dict[str, str], dict[str, dict[str, list[str]]]]] = {
    "a file": ({}, {"Serve": {}, "Check": {}, "Admin": {}}),
    "a path": (
        {"SigningKeysParameter": "/authsvc/keys"},
        {"Serve": {PARAMETER: READ}, "Check": {PARAMETER: READ}, "Admin": {PARAMETER: WRITE}},
    ),
    "a parameter and a key of one's own": (
        {"SigningKeysParameter": "/authsvc/keys", "SigningKeysEncryptionKey": KEY},
        {
            "Serve": {PARAMETER: READ, KEY: ["kms:Decrypt"]},
            "Check": {PARAMETER: READ, KEY: ["kms:Decrypt"]},
            "Admin": {PARAMETER: WRITE, KEY: ["kms:Decrypt", "kms:Encrypt"]},
        },
    ),
}


@pytest.mark.engines
@pytest.mark.parametrize("case", CASES)
def test_permissions_for_the_keys(aws: Engine, table_prefix: str, case: str) -> None:
    """The conditions of the template, as an implementation of CloudFormation evaluates them."""
    parameters, expected = CASES[case]
    outputs = create_stack(aws, table_prefix.rstrip("-"), TablePrefix=table_prefix, **parameters)
    iam = boto3.client("iam", **aws.client_options())
    for policy, allowed in expected.items():
        version = iam.get_policy_version(PolicyArn=outputs[f"{policy}PolicyArn"], VersionId="v1")["PolicyVersion"]
        document: Any = version["Document"]
        document = json.loads(document) if isinstance(document, str) else document
        on_keys = {
            each["Resource"]: each["Action"] if isinstance(each["Action"], list) else [each["Action"]]
            for each in document["Statement"]
            if not str(each["Action"]).strip("['").startswith("dynamodb:")
        }
        assert on_keys == allowed

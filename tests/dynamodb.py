"""The DynamoDB tables as another program uses them, with plain boto3."""

from dataclasses import dataclass
from typing import Any

import boto3
from types_boto3_dynamodb import DynamoDBClient

from tests.engines import Engine


@dataclass(frozen=True)
class Tables:
    """Reads and writes of another program beside the service."""

    dynamodb: DynamoDBClient
    prefix: str

    @property
    def users(self) -> str:
        return f"{self.prefix}users"

    @property
    def unique(self) -> str:
        return f"{self.prefix}unique"

    @property
    def sessions(self) -> str:
        return f"{self.prefix}sessions"

    @property
    def login_attempts(self) -> str:
        return f"{self.prefix}login-attempts"

    def create_users_table(self) -> None:
        """Create the users table as AWS's documentation does."""
        self.dynamodb.create_table(
            TableName=self.users,
            AttributeDefinitions=[
                {"AttributeName": "user_id", "AttributeType": "S"},
                {"AttributeName": "email", "AttributeType": "S"},
            ],
            KeySchema=[{"AttributeName": "user_id", "KeyType": "HASH"}],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "email-index",
                    "KeySchema": [{"AttributeName": "email", "KeyType": "HASH"}],
                    "Projection": {"ProjectionType": "ALL"},
                }
            ],
            BillingMode="PAY_PER_REQUEST",
        )

    def put_user(self, user_id: str, email: str | None = None, **attributes: Any) -> None:
        """Write a whole row; attributes are in DynamoDB's JSON, `role={"S": "user"}`."""
        item: dict[str, Any] = {"user_id": {"S": user_id}, "role": {"S": "user"}, **attributes}
        if email is not None:
            item["email"] = {"S": email}
        self.dynamodb.put_item(TableName=self.users, Item=item)

    def update_user(self, user_id: str, expression: str, **values: Any) -> None:
        """Change a row: `update_user(id, "SET is_active = :v", v={"BOOL": False})`."""
        self.dynamodb.update_item(
            TableName=self.users,
            Key={"user_id": {"S": user_id}},
            UpdateExpression=expression,
            ExpressionAttributeValues={f":{name}": value for name, value in values.items()},
        )

    def set_attribute(self, user_id: str, name: str, value: Any) -> None:
        self.dynamodb.update_item(
            TableName=self.users,
            Key={"user_id": {"S": user_id}},
            UpdateExpression="SET #n = :v",
            ExpressionAttributeNames={"#n": name},
            ExpressionAttributeValues={":v": value},
        )

    def delete_user(self, user_id: str) -> None:
        self.dynamodb.delete_item(TableName=self.users, Key={"user_id": {"S": user_id}})

    def get_user(self, user_id: str) -> dict[str, Any]:
        key = {"user_id": {"S": user_id}}
        return dict(self.dynamodb.get_item(TableName=self.users, Key=key, ConsistentRead=True).get("Item", {}))

    def forget_attempts(self) -> None:
        for row in self.rows(self.login_attempts):
            self.dynamodb.delete_item(TableName=self.login_attempts, Key={"attempt_key": row["attempt_key"]})

    def claim(self, email: str) -> str | None:
        """Return the user id that the claim of an address names."""
        key = {"unique_key": {"S": f"email#{email}"}}
        item = self.dynamodb.get_item(TableName=self.unique, Key=key, ConsistentRead=True).get("Item")
        return None if item is None else item["user_id"]["S"]

    def put_claim(self, email: str, user_id: str) -> None:
        item = {"unique_key": {"S": f"email#{email}"}, "user_id": {"S": user_id}}
        self.dynamodb.put_item(TableName=self.unique, Item=item)

    def claims(self) -> dict[str, str]:
        """Return the user id that each claim names, by address."""
        rows = {row["unique_key"]["S"].partition("#"): row["user_id"]["S"] for row in self.rows(self.unique)}
        return {key[2]: user_id for key, user_id in rows.items() if key[0] == "email"}

    def rows(self, table: str) -> list[dict[str, Any]]:
        return [dict(item) for item in self.dynamodb.scan(TableName=table, ConsistentRead=True)["Items"]]


def tables_of(engine: Engine, prefix: str) -> Tables:
    return Tables(boto3.client("dynamodb", **engine.client_options()), prefix)

"""authsvc: an authentication service over gRPC, with DynamoDB or SQLite as its store."""

from importlib.metadata import version

__version__ = version("authsvc")

"""Opening the store that the settings name."""

from contextlib import AbstractAsyncContextManager

from authsvc.config import StoreSettings
from authsvc.stores.dynamodb.timeouts import DynamoDBTimeouts
from authsvc.stores.interface import OnUserChanged, Store, ignore
from authsvc.stores.sqlite import open_sqlite_store


def open_store(
    settings: StoreSettings,
    on_user_changed: OnUserChanged = ignore,
    timeouts: DynamoDBTimeouts | None = None,
) -> AbstractAsyncContextManager[Store]:
    """Open the store that the settings name.

    Args:
        settings: Of the store.
        on_user_changed: Called with the id of each user whose row the store changed.
        timeouts: DynamoDB's; None: those of production.

    Raises:
        ConfigError: No AWS region is configured.
        StoreSetupError: The SQLite file cannot be opened.
    """
    if settings.sqlite_path is None:
        # AWS's libraries take a second to import, and SQLite needs none of them.
        from authsvc.stores.dynamodb.store import open_dynamodb_store  # noqa: PLC0415

        return open_dynamodb_store(settings.table_prefix, on_user_changed, timeouts)
    return open_sqlite_store(settings.sqlite_path, on_user_changed)

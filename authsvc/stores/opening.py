"""Open the store that the settings name."""

from contextlib import AbstractAsyncContextManager

from authsvc.config import Settings
from authsvc.stores.interface import OnUserChanged, Store, ignore
from authsvc.stores.sqlite import open_sqlite_store


def open_store(settings: Settings, on_user_changed: OnUserChanged = ignore) -> AbstractAsyncContextManager[Store]:
    """Open the store that the settings name.

    Args:
        settings: All of them.
        on_user_changed: See Store.

    Raises:
        ConfigError: DynamoDB without a region.
        StoreSetupError: A SQLite file that cannot be opened.
    """
    if settings.sqlite_path is None:
        # AWS's libraries take a second to import, and SQLite needs none of them.
        from authsvc.stores.dynamodb.store import open_dynamodb_store  # noqa: PLC0415

        return open_dynamodb_store(settings.table_prefix, on_user_changed)
    return open_sqlite_store(settings.sqlite_path, on_user_changed)

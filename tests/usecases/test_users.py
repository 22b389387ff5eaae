"""Walking over all users."""

from authsvc.config import ServeSettings
from authsvc.stores.opening import open_store
from authsvc.usecases import users
from tests.stores.contract.test_store import NOW, new_user


async def test_every_user_is_met_over_many_pages(settings: ServeSettings) -> None:
    async with open_store(settings) as store:
        await store.create_tables()
        made = [await store.create_user(new_user(f"user{n}@example.com"), NOW) for n in range(5)]
        met = [user async for user in users.iterate_users(store, page_size=2)]
    assert sorted(user.email for user in met) == sorted(user.email for user in made)

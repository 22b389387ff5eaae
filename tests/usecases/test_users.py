"""Walking over all users."""

from authsvc.config import ServeSettings
from authsvc.models import User
from authsvc.stores.opening import open_store
from authsvc.usecases import users
from tests.stores.contract.test_store import NOW, new_user
from tests.support import FakeClock


async def test_every_user_is_met_over_many_pages(settings: ServeSettings) -> None:
    async with open_store(settings) as store:
        await store.create_tables()
        made = [await store.create_user(new_user(f"user{n}@example.com"), NOW) for n in range(5)]
        met = [user async for user in users.iterate_users(store, page_size=2)]
    assert sorted(user.email for user in met) == sorted(user.email for user in made)


async def test_no_new_user_has_an_id_that_begins_with_a_dash(settings: ServeSettings, clock: FakeClock) -> None:
    """One random id in 64 would, and a command would take it for an option."""
    ids = []

    class Store:
        async def create_user(self, user: User, *_: object) -> User:
            ids.append(user.user_id)
            return user

    use_cases = users.Users(Store(), None, clock, settings.password_min_length)  # type: ignore[arg-type]
    password_hash = "$2b$12$" + "." * 53
    for number in range(1000):
        await use_cases.import_user(email=f"u{number}@example.com", role="", password_hash=password_hash)
    assert len(set(ids)) == 1000
    assert not [user_id for user_id in ids if user_id.startswith("-")]

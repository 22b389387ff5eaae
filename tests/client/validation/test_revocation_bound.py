"""The bound that counts: a token revoked at T is accepted by no call begun after T + max_staleness."""

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from authsvc.client import Identity, InvalidTokenError, UnavailableError
from authsvc.client.validation.batches import Question
from authsvc.client.validation.cache import Answer
from tests.client.doubles import Rig, Service, identity
from tests.virtual_clock import jumping, now

LATENCIES = st.sampled_from([0.0, 0.001, 0.2, 0.4])
BUDGETS = [0.0, 0.1, 1.0, 3.0]
CALLS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.floats(0, 6),  # when
        st.sampled_from(BUDGETS),  # max_staleness
    ),
    min_size=10,
    max_size=60,
)


@given(
    calls=CALLS,
    revoked_at=st.floats(0, 5),
    latencies=st.lists(st.tuples(LATENCIES, LATENCIES), min_size=1, max_size=10),
    down=st.tuples(st.floats(0, 6), st.sampled_from([0.0, 1.0])),
)
@settings(max_examples=80)
def test_no_acceptance_beyond_the_budget(
    calls: list[tuple[str, float, float]],
    revoked_at: float,
    latencies: list[tuple[float, float]],
    down: tuple[float, float],
) -> None:
    @jumping
    async def run() -> None:
        class Store(Service):
            """Each request reads the store between a way there and a way back of changing length."""

            async def send(self, questions: Sequence[Question], timeout: float) -> Sequence[Answer]:
                there, back = latencies[len(self.batches) % len(latencies)]
                self.batches.append([])
                await asyncio.sleep(there)
                is_revoked, is_down = now() >= revoked_at, down[0] <= now() < down[0] + down[1]
                await asyncio.sleep(back)
                if is_down:
                    raise UnavailableError
                return [
                    InvalidTokenError("SESSION_REVOKED") if is_revoked and each.token == "a" else identity(each.token)
                    for each in questions
                ]

        rig = Rig(Store())

        async def call(token: str, at: float, budget: float) -> None:
            await asyncio.sleep(at)
            begin = now()
            try:
                accepted = isinstance(await rig.validate(token, budget), Identity)
            except InvalidTokenError:
                accepted = False
                assert token == "a"
                assert now() >= revoked_at
            except UnavailableError:
                return
            assert not (accepted and token == "a" and begin > revoked_at + budget)

        # Where it would show first: an entry from just before the revocation, and calls just after its budget.
        edges = [("a", max(0.0, revoked_at - 0.001), 0.0)]
        edges += [("a", revoked_at + budget + 0.001, budget) for budget in BUDGETS[1:]]
        await asyncio.gather(*(call(*each) for each in (*calls, *edges)))

    run()

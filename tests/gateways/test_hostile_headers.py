"""No set of headers passes envoy.yaml with an identity that is not the token's."""

from collections import Counter

import pytest

from tests.gateways import hostile
from tests.gateways.conftest import Gateway
from tests.support import ADMIN_EMAIL

pytestmark = pytest.mark.engines

STATUSES = {0, 200, 400, 401, 403, 431}
"""0: Envoy hangs up."""


async def test_no_headers_pass_another_identity(gateway: Gateway) -> None:
    user = await gateway.client.create_user()
    tokens = (await gateway.client.log_in()).tokens
    root = await gateway.client.log_in(ADMIN_EMAIL)
    alice = {
        "x-auth-user-id": user.user_id,
        "x-auth-email": "alice@example.com",
        "x-auth-role": "user",
        "x-auth-session-id": tokens.session_id,
    }
    victim = [root.user.user_id, root.user.email, root.user.role, root.tokens.session_id]
    attacks = hostile.attacks(
        tokens.access_token.encode(), root.tokens.access_token.encode(), [value.encode() for value in victim]
    )
    assert len(attacks) == hostile.SIZE
    statuses: Counter[int] = Counter()
    wrong = []
    for attack in attacks:
        for target in ("/", "/catalogue", "/admin"):
            # Where no token is needed, a request may pass without any identity.
            allowed = [alice] if attack.has_token and target != "/admin" else []
            allowed += [{}] if target == "/catalogue" else []
            seen = len(gateway.backend.seen)
            response = await gateway.envoy.send(target, *attack.headers)
            passed = gateway.backend.seen[seen:]
            statuses[response.status] += 1
            if (
                response.status not in STATUSES
                or [response.status] * len(passed) != [200] * (response.status == 200)
                or any(request.identity not in allowed or request.values("authorization") for request in passed)
            ):
                wrong.append((attack.name, target, response.status, passed))
    assert wrong == []
    # The good ones pass, so the others are refused for what they are.
    assert statuses[200] > len(attacks) / 4

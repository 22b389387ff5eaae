"""What is said where the history does not reach back to an earlier version."""

import pytest

from tests.earlier import earlier_version
from tests.engines import EngineUnavailableError


def test_a_shallow_clone_fails_with_the_remedy() -> None:
    with pytest.raises(
        EngineUnavailableError, match=r"the commit 000000000000 is not in this clone: run git fetch --un"
    ):
        earlier_version("0" * 40)

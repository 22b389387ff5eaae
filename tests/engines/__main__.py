"""Install the named engines, or all, ahead of the tests: a first installation takes longer than a test may."""

import sys
from collections.abc import Callable
from functools import partial

from tests import tools
from tests.earlier import earlier_version
from tests.engines import ENGINES, EngineUnavailableError, launch


def main() -> None:
    for name in sys.argv[1:] or ENGINES:
        _report(name, partial(_start, name))
    _report("grpcurl", tools.grpcurl)
    _report("Envoy", tools.envoy)
    _report("the Go client", tools.go_client)
    _report("the Go backend", tools.go_backend)
    if not sys.argv[1:]:  # what `make test` does not need
        _report("the first complete service", earlier_version)
        _report("Prometheus", tools.prometheus)


def _start(name: str) -> None:
    with launch(name):
        pass


def _report(name: str, install: Callable[[], object]) -> None:
    try:
        install()
    except EngineUnavailableError as unavailable:
        sys.stdout.write(f"{name}: left out: {unavailable}\n")
    else:
        sys.stdout.write(f"{name}: ready\n")


main()

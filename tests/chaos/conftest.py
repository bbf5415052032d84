"""What the chaos tests share: the reference answers, and where measured times go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from support.chaos.baseline import Baseline
from support.chaos.server import ChaosServer, chaos_server
from support.chaos.streams import Answer, answers
from support.chaos.workload import mixed_workload

SAMPLE = "chaos_sample"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is `make test-chaos`; what is marked as its sample is in `make test` too."""
    for item in items:
        if "tests/chaos/" in item.nodeid:
            item.add_marker("chaos")
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def reference() -> dict[str, Answer]:
    """The mixed workload's answers, undisturbed, on a server with the settings of most cases.

    They are the same bits in any batch and after any preemption, so one recording serves all servers.
    """
    with chaos_server() as server:
        recorded = asyncio.run(answers(server, mixed_workload()))
        assert {name for name, answer in recorded.items() if not answer} == set()
        return recorded


@pytest.fixture
def baseline(server: ChaosServer, reference: object) -> Iterator[Baseline]:
    """What the module's server has when idle; at the end of the test it must be back there."""
    taken = Baseline.take(server)
    yield taken
    taken.check(server)

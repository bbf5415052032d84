"""What the tests of all clients share: one server for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import LiveServer, live_server


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """A server with the bundled model."""
    with live_server("--kv-cache-memory", "64MiB", "--log-level", "warning") as running:
        yield running

"""One server for all tests that are content with its defaults: a start takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.servers import Server, running_server


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    """The bundled model as it comes. What is in its prefix cache depends on the tests before."""
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def server(shared_server: Server) -> Iterator[Server]:
    """A module that needs other settings makes a fixture of this name."""
    yield shared_server
    shared_server.wait_idle()

"""Ports that a supervisor keeps and gateways share."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from quire.errors import StartupError
from quire.ports import PortReservation, take_port


@pytest.fixture
def reservation() -> Iterator[PortReservation]:
    with contextlib.closing(PortReservation("127.0.0.1", 0, "port")) as reservation:
        yield reservation


def _gateway(port: int) -> contextlib.closing[socket.socket]:
    """A listening socket as a gateway has it."""
    taken = take_port("127.0.0.1", port, shared=True)
    taken.listen()
    return contextlib.closing(taken)


def test_gateways_share_a_kept_port_one_after_the_other_and_together(reservation: PortReservation):
    with _gateway(reservation.port) as first:
        with socket.create_connection(("127.0.0.1", reservation.port), timeout=10):
            first.accept()[0].close()  # the server's end lingers
        with _gateway(reservation.port), _gateway(reservation.port):
            pass
    with _gateway(reservation.port):
        pass


@pytest.mark.parametrize("gateways", [0, 2])
def test_another_server_is_refused(reservation: PortReservation, gateways: int):
    """Also between the death of the only gateway and the start of the next."""
    with contextlib.ExitStack() as listening:
        for _ in range(gateways):
            listening.enter_context(_gateway(reservation.port))
        with pytest.raises(StartupError, match="--port: cannot listen"):
            take_port("127.0.0.1", reservation.port)
        with pytest.raises(StartupError, match="--grpc-port: cannot listen") as caught:
            PortReservation("127.0.0.1", reservation.port, "grpc_port")
    assert caught.value.field == "grpc_port"


def test_a_port_that_another_server_has_is_refused():
    with contextlib.closing(take_port("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartupError, match=str(port)):
            PortReservation("127.0.0.1", port, "port")


def test_a_port_is_free_again_afterwards():
    with contextlib.closing(PortReservation("127.0.0.1", 0, "port")) as reservation:
        port = reservation.port
    take_port("127.0.0.1", port).close()


def test_nobody_is_connected_before_a_gateway_listens(reservation: PortReservation):
    with contextlib.closing(take_port("127.0.0.1", reservation.port, shared=True)), pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", reservation.port), timeout=10)

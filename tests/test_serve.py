"""What `quire serve` says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from quire.config import ServeSettings
from quire.serve import admits_everybody

OPEN = {"host": "0.0.0.0"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gpu-1.example"])
def test_off_loopback_everybody_may_call(host: str) -> None:
    assert admits_everybody(ServeSettings.load({"host": host}))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"host": "::1"},
        {"host": "localhost"},
        {**OPEN, "api_key": ["secret"]},
        {**OPEN, "api_keys": "keys.yaml"},
        {**OPEN, "ssl_cert_reqs": "required"},
    ],
)
def test_someone_is_kept_out(given: dict[str, Any]) -> None:
    assert not admits_everybody(ServeSettings.load(given))


def test_an_optional_certificate_keeps_nobody_out() -> None:
    assert admits_everybody(ServeSettings.load({**OPEN, "ssl_cert_reqs": "optional"}))

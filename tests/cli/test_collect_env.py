"""`quire collect-env`: it says what is there, and no secret."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quire import __version__
from quire.cli import app
from quire.collect_env import render, variables


def test_what_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_API_KEY", "sesame")
    monkeypatch.setenv("QUIRE_KV_POOL", f"{Path.home()}/pool")
    result = CliRunner().invoke(app, ["collect-env", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["quire"]["version"] == __version__
    assert found["cpu"]["processors"] == os.cpu_count()
    assert found["kernels"]["chosen isa"] in found["kernels"]["isas"]
    assert found["sandbox"]["works"].startswith(("yes", "no: "))
    assert found["gpu"]["usable"] in (True, False)
    assert {"torch", "pydantic", "grpcio"} <= found["packages"].keys()
    assert "open files" in found["limits"]
    assert found["environment"]["QUIRE_KV_POOL"] == "~/pool"
    assert "sesame" not in result.output
    assert f"  version: {__version__}" in render(found).splitlines()


@pytest.mark.parametrize(
    "name",
    ["QUIRE_API_KEY", "QUIRE_API_KEYS", "HF_TOKEN", "QUIRE_SSL_KEYFILE", "VLLM_API_KEY", "https_proxy", "GRPC_AUTH_X"],
)
def test_secrets_and_what_leads_to_them_are_not_shown(name: str) -> None:
    assert variables({name: "sesame"}) == {name: "set, not shown"}


def test_which_variables_matter() -> None:
    assert variables({"OMP_NUM_THREADS": "2", "SSH_AUTH_SOCK": "/x", "EDITOR": "vi", "MY_SECRET": "x"}) == {
        "OMP_NUM_THREADS": "2"
    }
    address = {"QUIRE_OTLP_TRACES_ENDPOINT": "http://user:pass@host"}
    assert variables(address) == {"QUIRE_OTLP_TRACES_ENDPOINT": "set, not shown"}

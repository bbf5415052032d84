"""The systemd unit by systemd's own checks, which need no running systemd (tools/install_deploy_tools.sh)."""

from __future__ import annotations

import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest
from support.deployment import DEPLOY, load_command

from quire.config import ServeSettings

FOLDER = DEPLOY / "systemd"
# systemd's own scale, from 0 (nothing to lose) to 10. Its verdict up to 2 is "OK".
LARGEST_EXPOSURE = 2.0


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here: to be there is part of what is verified."""
    text = (FOLDER / "quire.service").read_text()
    assert text.count("/opt/quire/bin/quire") == 1
    path = tmp_path / "quire.service"
    path.write_text(text.replace("/opt/quire/bin/quire", "/bin/true"))
    return path


def analyze(*arguments: object) -> str:
    command = ["systemd-analyze", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("with_cuda", [False, True])
def test_systemd_understands_all_of_it(unit: Path, with_cuda: bool) -> None:
    if with_cuda:
        drop_in = unit.with_name("quire.service.d") / "quire-cuda.conf"
        drop_in.parent.mkdir()
        drop_in.write_text((FOLDER / "quire-cuda.conf").read_text())
    assert analyze("verify", "--man=no", "--recursive-errors=no", unit) == ""


def test_an_option_that_does_not_exist_is_found(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("ProtectSystem=", "ProtectsSystem="))
    with pytest.raises(AssertionError, match="ProtectsSystem"):
        analyze("verify", "--man=no", "--recursive-errors=no", unit)


def test_little_is_exposed(unit: Path) -> None:
    analyze("security", "--offline=true", f"--threshold={LARGEST_EXPOSURE * 10:.0f}", unit)


def test_timeouts_and_calls_fit_the_server() -> None:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(FOLDER / "quire.service")
    service = parser["Service"]
    settings = load_command([Path(word).name for word in service["ExecStart"].split()], {})
    assert isinstance(settings, ServeSettings)
    assert int(service["TimeoutStartSec"]) > settings.startup_timeout
    assert int(service["TimeoutStopSec"]) >= settings.shutdown_timeout + 30
    # An executor's own sandbox is a seccomp filter, which systemd's set of calls for services does not include.
    assert "seccomp" in service["SystemCallFilter"].split()

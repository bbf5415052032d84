"""The Dockerfile, as far as it can be checked without Docker; test_container.py runs what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dockerfile_parse import DockerfileParser
from support.deployment import DEPLOY, ROOT, docker_context, load_command

from quire.config import ServeSettings

FOLDER = DEPLOY / "docker"


@pytest.fixture(scope="module")
def instructions() -> list[dict[str, Any]]:
    return DockerfileParser(str(FOLDER)).structure


def values(instructions: list[dict[str, Any]], name: str) -> list[str]:
    return [entry["value"] for entry in instructions if entry["instruction"] == name]


def last_stage(instructions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    begin = max(index for index, entry in enumerate(instructions) if entry["instruction"] == "FROM")
    return instructions[begin:]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None
    command = [hadolint, "--config", FOLDER / "hadolint.yaml", FOLDER / "Dockerfile"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_base_image_has_a_full_version(instructions: list[dict[str, Any]]) -> None:
    images = [value for value in values(instructions, "ARG") if value.startswith("PYTHON_IMAGE=")]
    assert [re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+", image) is not None for image in images] == [True]
    stages = {value.split()[-1] for value in values(instructions, "FROM")}
    for value in values(instructions, "FROM"):
        base = value.split()[0]
        assert base == "${PYTHON_IMAGE}" or base in stages or base == "torch-${VARIANT}"
    assert {"torch-cpu", "torch-cuda"} <= stages


def test_every_source_of_a_copy_is_sent_to_the_builder(instructions: list[dict[str, Any]]) -> None:
    sent = set(docker_context(FOLDER / "Dockerfile.dockerignore"))
    folders = {parent for path in sent for parent in path.parents}
    copies = [value.split() for value in values(instructions, "COPY") if not value.startswith("--from")]
    assert len(copies) > 5
    for *sources, _ in copies:
        for source in map(Path, sources):
            assert (ROOT / source).exists()
            assert source in sent or source in folders, f"{source} is ignored"


def test_nothing_that_was_built_on_the_host_is_sent() -> None:
    sent = [str(path) for path in docker_context(FOLDER / "Dockerfile.dockerignore")]
    assert not [path for path in sent if "_pb2" in path or path.endswith((".so", ".pyc", ".o"))]
    assert not [path for path in sent if path.startswith(("tests", ".git", "docs", "benchmarks"))]


def test_runtime_has_no_root_and_no_compiler(instructions: list[dict[str, Any]]) -> None:
    stage = last_stage(instructions)
    assert values(stage, "FROM")[0].startswith("${PYTHON_IMAGE} ")
    user = values(stage, "USER")[-1]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), "a number, so that Kubernetes sees that it is not root"
    installed = " ".join(values(stage, "RUN"))
    assert "g++" not in installed and "pip install" not in installed
    assert [name for name in ("gcc", "make", "git") if re.search(rf"\b{name}\b", installed)] == []


def test_pip_always_has_the_constraints(instructions: list[dict[str, Any]]) -> None:
    assert (
        sum("PIP_CONSTRAINT=" in value for value in values(instructions, "ENV")) == 2
    )  # both bases of stages with pip


def test_entrypoint_is_a_command_of_quire(instructions: list[dict[str, Any]]) -> None:
    line = json.loads(values(last_stage(instructions), "ENTRYPOINT")[0])
    assert line[:2] == ["tini", "--"]
    settings = load_command(line, {})
    assert isinstance(settings, ServeSettings)
    assert settings.host == "0.0.0.0"
    exposed = values(last_stage(instructions), "EXPOSE")[0].split()
    assert exposed == [str(settings.port), str(settings.grpc_port)]
    assert values(last_stage(instructions), "STOPSIGNAL") == ["SIGTERM"]


def test_health_check_waits_for_the_start(instructions: list[dict[str, Any]]) -> None:
    check = values(last_stage(instructions), "HEALTHCHECK")[0]
    period = re.search(r"--start-period=(\d+)s", check)
    assert period is not None
    assert int(period.group(1)) >= ServeSettings.load({}).startup_timeout
    assert "/opt/quire/healthcheck.py" in check

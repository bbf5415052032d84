"""What takes minutes and is made once: the distributions, and an environment with the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support.deployment import ROOT
from support.installed import Distributions, build_wheel, clean_environment, run


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    folder = tmp_path_factory.mktemp("distributions")
    run([sys.executable, "-P", "-m", "hatchling", "build", "--target", "sdist", "--directory", folder], cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return Distributions(sdist, source, build_wheel(source, folder / "wheel"))


@pytest.fixture(scope="session")
def installed(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel, what it needs, and nothing else. torch comes first: see the Makefile."""
    environment = tmp_path_factory.mktemp("environment") / "quire"
    run([sys.executable, "-m", "venv", environment], cwd=ROOT)
    variables = clean_environment(PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    pip = [environment / "bin" / "pip", "install", "--quiet"]
    index = os.environ.get("TORCH_INDEX")
    run([*pip, *(["--index-url", index] if index else []), "torch"], cwd=environment, environment=variables)
    run([*pip, f"{distributions.wheel}[otel]"], cwd=environment, environment=variables)
    return environment


@pytest.fixture(scope="session")
def tracked() -> list[str]:
    """The files of the repository, as paths from its root; new ones too, if git does not ignore them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]

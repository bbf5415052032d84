"""What is in the distributions, and what is not."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename
from support.deployment import DEPLOY, ROOT, docker_context
from support.installed import Distributions, build_wheel

pytestmark = pytest.mark.timeout(1200)  # the first test builds

PARTS = ("gateway", "scheduler", "executor", "kernels")


@pytest.fixture(scope="module")
def files(distributions: Distributions) -> dict[str, bytes]:
    """The wheel's files of ours."""
    return contents(distributions.wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name) for name in names}


def test_tag_is_of_this_platform_and_any_python(distributions: Distributions) -> None:
    name, version, _, tags = parse_wheel_filename(distributions.wheel.name)
    (tag,) = tags
    assert (name, str(version)) == ("quire", "0.1.0")
    assert (tag.interpreter, tag.abi) == ("py3", "none")
    # Not manylinux: it was compiled against the C library of this machine.
    assert tag.platform.startswith("linux_")
    assert tag in set(sys_tags())


def test_wheel_holds_every_file_of_the_package(files: dict[str, bytes], tracked: list[str]) -> None:
    expected = {name.removeprefix("src/") for name in tracked if name.startswith("src/quire/")}
    expected |= {f"quire/{name}" for name in tracked if name.startswith(tuple(f"{part}/" for part in PARTS))}
    # Links to the parts; sources of what is compiled.
    expected -= {f"quire/{part}" for part in PARTS}
    expected = {name for name in expected if not name.startswith("quire/kernels/native/")}
    made = {name for name in files if name.startswith(("quire/v1/", "quire/internal/")) or name.endswith(".so")}
    assert set(files) - made == expected - made
    assert {"quire/py.typed", "quire/bundled/quire-tiny/model.safetensors"} <= set(files)


def test_wheel_holds_what_is_made_by_the_build(files: dict[str, bytes]) -> None:
    for proto in (ROOT / "protos").rglob("*.proto"):
        stem = proto.relative_to(ROOT / "protos").with_suffix("")
        assert {f"{stem}_pb2.py", f"{stem}_pb2.pyi", f"{stem}_pb2_grpc.py"} <= set(files)
    libraries = [name for name in files if name.endswith(".so")]
    assert libraries == ["quire/kernels/libquire_kernels.so"]
    assert files[libraries[0]].startswith(b"\x7fELF")


def test_nothing_names_the_place_of_the_build(files: dict[str, bytes], distributions: Distributions) -> None:
    places = [str(place).encode() for place in (ROOT, distributions.source)]
    assert [name for name, data in files.items() if any(place in data for place in places)] == []


def test_source_distribution_holds_sources_alone(distributions: Distributions, tracked: list[str]) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()}
    assert [name for name in names if name.endswith(".so") or "_pb2" in name] == []
    expected = {name for name in tracked if not name.startswith((".ci/", "tests/"))}
    # Links are not carried: the wheel is made from what they lead to.
    expected -= {f"src/quire/{part}" for part in PARTS}
    assert names == expected | {"PKG-INFO"}


def test_dockerfile_copies_what_the_same_wheel_takes(
    files: dict[str, bytes], distributions: Distributions, tmp_path: Path
) -> None:
    """Its COPY instructions, obeyed in an empty folder, and its build."""
    sent = list(docker_context(DEPLOY / "docker" / "Dockerfile.dockerignore"))
    source = tmp_path / "src"
    for instruction in DockerfileParser(str(DEPLOY / "docker")).structure:
        if instruction["instruction"] == "COPY" and "--from" not in instruction["value"]:
            *origins, target = instruction["value"].split()
            if target.startswith("/"):  # another stage's
                continue
            for origin in map(Path, origins):
                copy(origin, source / target, sent)
    # Objects are named by a digest of all they are made from: what differs is compiled, the rest need not be again.
    shutil.copytree(distributions.source / "kernels" / "build", source / "kernels" / "build")
    built = contents(build_wheel(source, tmp_path / "wheel"))
    assert set(built) == set(files)
    assert {name for name in files if built[name] != files[name]} <= {"quire/kernels/libquire_kernels.so"}


def copy(origin: Path, target: Path, sent: list[Path]) -> None:
    """A file into a folder, or what a folder holds into another, as COPY does."""
    for path in sent:
        if path == origin:
            place = target / path.name
        elif origin in path.parents:
            place = target / path.relative_to(origin)
        else:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, place, follow_symlinks=False)

"""`quire inspect` on files: what it says, its exit status, and that nothing makes it crash or write."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.made_pools import LAYOUT, NUM_BLOCKS, make_contents, make_pool, write
from typer.testing import CliRunner

from quire.cli import app
from quire.errors import KvPoolError, QuireError
from quire.inspect.findings import Kind
from quire.inspect.inspection import Inspection, inspect, look
from quire.inspect.processes import open_if_pool
from quire.inspect.report import to_json
from quire.inspect.target import Target, find_target
from quire.kv_layout import HEADER_BYTES, KvPoolHeader, PoolState
from quire.kv_pool import KvPool, boot_id

# What other programs of this machine keep is not about the pool that is looked at.
OWN_KINDS = set(Kind) - {Kind.UNSERVED}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_pool(tmp_path / "pool")


def _inspect(path: Path) -> Inspection:
    """One look: nobody writes these files."""
    descriptor = open_if_pool(path)
    if descriptor is None:
        raise KvPoolError("no pool")
    target = Target(str(path), descriptor, None)
    try:
        return look(target)
    finally:
        target.close()


def _kinds(found: Inspection) -> set[Kind]:
    return {finding.kind for finding in found.findings} & OWN_KINDS


def _run(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["inspect", "--json", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


def _set_header(path: Path, header: KvPoolHeader) -> None:
    with path.open("r+b") as file:
        file.write(header.pack())


def test_a_sound_pool(path: Path):
    code, found = _run(str(path))
    own = [finding for finding in found["findings"] if finding["kind"] in OWN_KINDS]
    assert own == []
    assert code == (0 if found["sound"] else 2)
    assert found["header"]["state"] == "OPEN"
    assert found["header"]["num_blocks"] == NUM_BLOCKS
    assert found["header"]["size_bytes"] == LAYOUT.total_bytes == path.stat().st_size
    assert found["header"]["allocated_bytes"] >= LAYOUT.total_bytes
    assert found["journal"]["records"]["known"] == 8
    assert found["journal"]["known_tokens"] == 32
    assert found["journal"]["known_bytes"] == 8 * LAYOUT.block_bytes * 2
    assert found["map"] == {"free": 16, "cached: its content is known": 8}
    assert found["scheduler"] is None
    assert found["processes"] == []


def test_the_same_in_words(path: Path):
    done = CliRunner().invoke(app, ["inspect", str(path)])
    for words in ("magic", "OPEN", "known tokens", "prompts"):
        assert words in done.stdout


def test_nothing_is_written_and_no_lock_is_taken(path: Path):
    before, status = path.read_bytes(), path.stat()
    with KvPool(os.open(path, os.O_RDWR)):
        target = find_target(str(path))
        with pytest.raises(OSError):
            os.write(target.descriptor, b"x")
        inspect(target, second_look_s=0)
        locks = Path("/proc/locks").read_text()
        target.close()
    assert f":{status.st_ino} " not in locks
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == status.st_mtime_ns


@pytest.mark.parametrize(
    ("state", "boot", "kinds", "says"),
    [
        (PoolState.CLEAN, bytes(16), set(), "ended in order"),
        (PoolState.OPEN, bytes(16), {Kind.STALE}, "another boot"),
        (PoolState.DISCARDED, None, {Kind.STALE}, "DISCARDED"),
    ],
)
def test_the_state_is_explained(path: Path, state, boot, kinds, says):
    _set_header(path, KvPoolHeader(LAYOUT, state, boot or boot_id()))
    found = _inspect(path)
    assert _kinds(found) == kinds
    assert any(says in check.text for check in found.header.checks)


@pytest.mark.parametrize("size", [12, 100, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 50, LAYOUT.total_bytes - 1])
def test_a_file_that_was_cut_off(path: Path, size: int):
    os.truncate(path, size)
    found = _inspect(path)
    assert _kinds(found) == {Kind.HEADER}
    assert (found.journal is None) == (size < LAYOUT.data_offset)
    assert json.dumps(to_json(found))


def test_a_file_that_grew(path: Path):
    os.truncate(path, LAYOUT.total_bytes + 1)
    found = _inspect(path)
    assert _kinds(found) == {Kind.HEADER}
    assert found.journal is not None and found.journal.num_known == 8


def test_wrong_records_are_found(path: Path):
    with KvPool(os.open(path, os.O_RDWR)) as pool:
        write(pool.journal(), replace(make_contents()[0], hash=b"x" * 32))
    code, found = _run(str(path))
    assert code == 2
    assert not found["sound"]
    assert [finding["block"] for finding in found["findings"] if finding["kind"] in OWN_KINDS] == [7]
    assert found["map"]["damaged or leaked"] == 1


def test_a_scheduler_that_does_not_answer_is_a_note(path: Path, tmp_path: Path):
    _, found = _run(str(path), "--scheduler", f"unix:{tmp_path}/none.sock")
    assert [note for note in found["notes"] if "not heard" in note]
    assert found["scheduler"] is None
    assert found["journal"]["known_blocks"] == 8


def test_another_version_is_named(path: Path):
    with path.open("r+b") as file:
        file.seek(8)
        file.write((2).to_bytes(4, "little"))
    with pytest.raises(KvPoolError, match=r"layout version is 2, and this program reads 3"):
        _inspect(path)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))])
def test_flipped_bytes_are_explained(path: Path, seed: int):
    """Damage anywhere in header and journal is found, or is where nothing is kept; it never ends in another error."""
    draw = random.Random(seed)
    whole = bytearray(path.read_bytes())
    for _ in range(6):
        spoilt = bytearray(whole)
        # Half of the time into what the header uses of its page.
        end = draw.choice([140, HEADER_BYTES + LAYOUT.journal_bytes])
        for _ in range(draw.choice([1, 1, 3, 40])):
            spoilt[draw.randrange(end)] ^= draw.randrange(1, 256)
        path.write_bytes(spoilt)
        try:
            found = _inspect(path)
        except KvPoolError as error:
            assert spoilt[:12] != whole[:12], "only magic and version make it unreadable"
            assert "header is damaged" in error.message or "no pool" in error.message
            continue
        assert (spoilt[:104] == whole[:104]) or _kinds(found) == {Kind.HEADER}
        json.dumps(to_json(found))


def test_random_files_are_refused(tmp_path: Path):
    draw = random.Random(1)
    for size in (0, 3, 4096, 10_000):
        path = tmp_path / "file"
        path.write_bytes(draw.randbytes(size))
        with pytest.raises(KvPoolError, match="not a KV pool"):
            find_target(str(path))


def test_what_is_no_file(tmp_path: Path):
    with pytest.raises(KvPoolError, match="is a folder"):
        find_target(str(tmp_path))
    with pytest.raises(KvPoolError, match="No such file"):
        find_target(str(tmp_path / "none"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(KvPoolError, match="not a KV pool"):
        find_target(str(tmp_path / "pipe"))


def test_processes_without_a_pool():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(KvPoolError, match=f"there is no process {ended.pid}"):
        find_target(str(ended.pid))
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other,
        pytest.raises(KvPoolError, match="is no process with a KV pool"),
    ):
        find_target(str(other.pid))


# As another user than the one who owns what is looked at.
_AS_NOBODY = """
import os, sys
from quire.errors import QuireError
from quire.inspect.target import find_target
if os.geteuid() == 0:
    os.seteuid(65534)
for target in sys.argv[1:]:
    try:
        find_target(target)
    except QuireError as error:
        print(error.message)
"""


def test_without_rights(path: Path):
    path.chmod(0)
    done = subprocess.run(
        [sys.executable, "-P", "-c", _AS_NOBODY, str(path), "1"],
        check=True, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    of_file, of_process = done.stdout.splitlines()
    assert of_file == f"cannot read {path}: Permission denied"
    assert of_process == "process 1 may not be looked at: it is another user's"


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_map_is_drawn(path: Path, tmp_path: Path, suffix: str):
    picture = tmp_path / "pictures" / f"map{suffix}"
    _run(str(path), "--map", str(picture))
    if suffix == ".png":
        assert picture.read_bytes().startswith(b"\x89PNG")
        return
    root = ElementTree.fromstring(picture.read_text())
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[1:] == ["free: 16", "cached: its content is known: 8"]
    fills = [element.get("fill") for element in root.iter("{http://www.w3.org/2000/svg}path")]
    assert len([fill for fill in fills if fill]) == 2, "one path for each class, and the gaps"


def test_the_map_is_never_drawn_over_the_pool(tmp_path: Path):
    path = make_pool(tmp_path / "pool.svg")
    before = path.read_bytes()
    with pytest.raises(QuireError, match="is the pool itself"):
        _run(str(path), "--map", str(path))
    with pytest.raises(QuireError, match=r"neither a \.svg nor a \.png"):
        _run(str(path), "--map", str(tmp_path / "map.pdf"))
    assert path.read_bytes() == before

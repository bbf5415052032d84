"""What a sandboxed process can no longer do, and what it still can."""

from __future__ import annotations

import functools
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from quire.errors import StartupError
from quire.executor.sandbox import _program, enter_sandbox

# Each attempt is a line; the process prints how each went, by name.
PROGRAM = """
import ctypes, fcntl, json, os, signal, socket, subprocess, sys, termios, threading
from pathlib import Path
from quire.executor.sandbox import enter_sandbox

folder = Path(sys.argv[1])
parent = os.getppid()
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(folder / "socket"))
listener.listen()
go, done = threading.Event(), threading.Event()
outcomes = {}

def attempt(name, act):
    try:
        act()
        outcomes[name] = "done"
    except OSError as error:
        outcomes[name] = error.strerror

def older_thread():
    go.wait()
    attempt("socket in a thread that ran before", lambda: socket.socket(socket.AF_INET))
    done.set()

threading.Thread(target=older_thread).start()
enter_sandbox("require", device="cpu")
go.set()
done.wait()
attempt("IPv4", lambda: socket.socket(socket.AF_INET))
attempt("IPv6 datagrams", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("writing a new file", lambda: (folder / "new").write_text("x"))
attempt("writing an old file", lambda: (folder / "model").write_text("x"))
attempt("appending", lambda: open(folder / "model", "a"))
attempt("removing", lambda: (folder / "model").unlink())
attempt("renaming", lambda: (folder / "model").rename(folder / "other"))
attempt("chmod", lambda: (folder / "model").chmod(0o777))
attempt("mkdir", lambda: (folder / "folder").mkdir())
attempt("truncating", lambda: os.truncate(folder / "model", 0))
attempt("a socket of its own", lambda: socket.socket(socket.AF_UNIX).bind(str(folder / "mine")))
attempt("another program", lambda: subprocess.run(["/bin/true"]))
attempt("killing the parent", lambda: os.kill(parent, 0))
attempt("typing into the terminal", lambda: fcntl.ioctl(1, termios.TIOCSTI, b"x"))

def io_uring():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 1, ctypes.create_string_buffer(256)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

attempt("io_uring", io_uring)
attempt("reading", lambda: (folder / "model").read_text())
attempt("a signal to itself", lambda: os.kill(os.getpid(), 0))
attempt("a new thread", lambda: threading.Thread(target=lambda: None).start())

def unix():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "socket"))
        listener.accept()[0].close()

attempt("Unix sockets", unix)
attempt("memory", lambda: os.ftruncate(os.memfd_create("x"), 4096))
print(json.dumps(outcomes))
"""
STILL_DONE = {"reading", "a signal to itself", "a new thread", "Unix sockets", "memory"}


def test_no_network_no_files_and_no_programs(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("weights")
    command = [sys.executable, "-P", "-c", PROGRAM, str(tmp_path)]
    outcomes = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60).stdout)
    assert {name for name, outcome in outcomes.items() if outcome == "done"} == STILL_DONE
    assert {outcomes[name] for name in outcomes.keys() - STILL_DONE} == {"Permission denied"}
    assert (tmp_path / "model").read_text() == "weights"
    assert len(outcomes) == 22


X86_64, AARCH64 = 0xC000003E, 0xC00000B7


def _allows(column: int, architecture: int, number: int, *arguments: int, called_as: int | None = None) -> bool:
    """What the filter says of a call, by an interpreter of its five instructions."""
    data = struct.pack("=iIQ6Q", number, called_as or architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(_program(column, architecture))
    loaded = position = 0
    while True:
        code, if_true, if_false, constant = program[position]
        position += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("=I", data, constant)
        elif code == 0x06:
            return constant == 0x7FFF_0000
        else:
            is_true = {0x15: loaded == constant, 0x35: loaded >= constant, 0x45: bool(loaded & constant)}[code]
            position += if_true if is_true else if_false


@pytest.mark.parametrize(
    ("column", "architecture", "socket_", "openat", "read", "unlinkat"),
    [(0, X86_64, 41, 257, 0, 263), (1, AARCH64, 198, 56, 63, 35)],
)
def test_the_filter_of_each_machine(
    column: int, architecture: int, socket_: int, openat: int, read: int, unlinkat: int
) -> None:
    allows = functools.partial(_allows, column, architecture)
    assert allows(read)
    assert allows(socket_, socket.AF_UNIX)
    assert not allows(socket_, socket.AF_INET)
    assert allows(openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):
        assert not allows(openat, 0, 0, flags)
    assert not allows(unlinkat)
    other = AARCH64 if architecture == X86_64 else X86_64
    assert not allows(read, called_as=other)


def test_numbers_of_the_32_bit_variant_of_x86_64() -> None:
    assert not _allows(0, X86_64, 0x4000_0000)


def test_a_machine_without_a_filter(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("platform.machine", lambda: "vax")
    enter_sandbox("auto", device="cpu")
    assert "no sandbox: there is no filter for vax" in caplog.text
    with pytest.raises(StartupError, match="--sandbox require: there is no filter for vax") as caught:
        enter_sandbox("require", device="cpu")
    assert caught.value.field == "sandbox"


def test_off_and_devices_with_drivers() -> None:
    before = Path("/proc/self/status").read_text().partition("NoNewPrivs:")[2].partition("Cpus")[0]
    enter_sandbox("off", device="cpu")
    enter_sandbox("auto", device="cuda")
    assert before in Path("/proc/self/status").read_text()

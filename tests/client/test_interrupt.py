"""Ctrl-C before a command has begun."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from support.servers import wait_for


def catches_interrupts(pid: int) -> bool:
    """Whether a process has a handler for SIGINT (proc_pid_status(5): SigCgt)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGINT - 1) & 1)


def is_importing(pid: int) -> bool:
    """Whether a process is among the imports of the command line: they load pydantic, and end with a handler."""
    return "pydantic_core" in Path(f"/proc/{pid}/maps").read_text() and not catches_interrupts(pid)


def test_an_interrupt_while_it_starts_prints_no_traceback() -> None:
    command = [sys.executable, "-P", "-m", "quire", "chat", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(lambda: is_importing(process.pid))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert err == b""

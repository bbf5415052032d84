"""Ctrl-C before a command has begun."""

from __future__ import annotations

import signal
import subprocess
import sys

# The command line, whose imports take longer than anybody waits.
_SLOW_TO_IMPORT = """
import signal, sys, time
from quire.__main__ import main

# As a terminal's shell starts programs; whoever runs these tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Slow:
    def find_spec(self, name, path, target=None):
        if name == "quire.cli":
            print("importing", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
sys.argv[1:] = ["chat", "--help"]
main()
"""


def test_an_interrupt_while_it_starts_prints_no_traceback() -> None:
    command = [sys.executable, "-P", "-c", _SLOW_TO_IMPORT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert err == b""

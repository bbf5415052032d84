"""The process that runs Hugging Face `generate`, as its owner sees it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Final, Self

from quire.bench.timeline import Timeline
from quire.errors import StartupError

_END_TIMEOUT_S: Final = 10.0
_SHOWN_OUTPUT: Final = 2000  # bytes of what it has printed, where it fails


class HfProcess:
    """A context manager: the process ends with it, and with us, as its input ends then."""

    def __init__(self) -> None:
        """Raises StartupError if there is no transformers."""
        if find_spec("transformers") is None:
            raise StartupError("there is no transformers to compare with: pip install transformers")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "quire.bench.compare_hf"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # As in our executors: threads that spin while they wait would steal from whoever shares the cores.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            # Ctrl-C is for us, who end it.
            process_group=0,
        )
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, timeout_s: float, **request: Any) -> dict[str, Any]:
        """Its answer. Raises StartupError if there is none in time, or if it says what is wrong."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._has_ended() from None
        answer: dict[str, Any] = json.loads(self._read_line(time.monotonic() + timeout_s))
        if "error" in answer:
            raise StartupError(f"Hugging Face: {answer['error']}")
        return answer

    def run(self, prompts: list[list[int]], users: int, mode: str, output_len: int, timeout_s: float) -> list[Timeline]:
        """Has prompts answered; the timelines are in their order. Raises StartupError."""
        answer = self.ask(timeout_s, op="run", prompts=prompts, users=users, mode=mode, output_len=output_len)
        return [_timeline(prompt, found) for prompt, found in zip(prompts, answer["answers"], strict=True)]

    def close(self) -> None:
        """Ends it: in good order if it is idle, and else at once."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:  # it is dead
            self._process.kill()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # an interrupt, perhaps: nobody waits for what it computes
            self._process.kill()
        self.close()

    def _read_line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise StartupError("Hugging Face generate did not answer in time: see --round-timeout")
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise self._has_ended()
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _has_ended(self) -> StartupError:
        status = self._process.wait(_END_TIMEOUT_S)
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _SHOWN_OUTPUT))
        said = self._log.read().decode(errors="replace").strip()
        return StartupError(f"the process of Hugging Face generate has ended with status {status}: {said}")


def _timeline(prompt: list[int], answer: dict[str, Any]) -> Timeline:
    """Without streaming, all of an answer comes at its end."""
    first, ended = answer["first"], answer["ended"]
    return Timeline(
        sent=answer["sent"],
        prompt_len=len(prompt),
        arrived=[ended] if first is None else [first, ended],
        pieces=[answer["text"]],
        output_len=answer["tokens"],
        ended=ended,
    )

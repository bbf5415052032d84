"""From `StructuredOutputs` to the grammar that executors get, tried out by the grammar process (worker.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quire.errors import InvalidRequestError, OverloadedError, ServiceUnavailableError
from quire.process import in_daemon_thread
from quire.sampling_params import is_encodable
from quire.structured_outputs import StructuredOutputs

logger = logging.getLogger(__name__)

# Characters of one constraint.
MAX_CONSTRAINT_LENGTH: Final = 1 << 16
# Grammars that are remembered, each at most about as long as its constraint.
_CACHE_SIZE: Final = 256
# Constraints that wait for the process, each for at most the processor time that the worker gives one.
_MAX_WAITING: Final = 32
# Wall clock. The worker has its own budget of processor time, so these only pass on a machine that is overloaded.
_START_TIMEOUT_S: Final = 120.0
_ANSWER_TIMEOUT_S: Final = 60.0
_KILL_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Constraint:
    """What a grammar depends on."""

    kind: str
    text: str
    compact: bool

    @classmethod
    def of(cls, outputs: StructuredOutputs) -> _Constraint:
        """Raises InvalidRequestError for a text that is too long or not valid Unicode."""
        kind, text = _kind_and_text(outputs)
        field = f"structured_outputs.{kind}"
        if len(text) > MAX_CONSTRAINT_LENGTH:
            message = f"{field} has {len(text)} characters; at most {MAX_CONSTRAINT_LENGTH} are taken"
            raise ConstraintTooLongError(message, field=field)
        if not is_encodable(text):
            raise InvalidRequestError(f"{field} is not valid Unicode", field=field)
        return cls(kind, text, outputs.disable_any_whitespace)


class ConstraintTooLongError(InvalidRequestError):
    """A constraint has too many characters; nothing is said of what they are."""


class GrammarCompiler:
    """Compiles for one model. Belongs to one event loop; its process starts with the first grammar."""

    def __init__(self, tokenizer: Path | None, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        """`tokenizer` is the model's tokenizer.json; without one, or without an end token, nothing is compiled."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        # What became of a constraint: a grammar, or why there is none.
        self._cache: OrderedDict[_Constraint, str | InvalidRequestError] = OrderedDict()
        self._worker: _Worker | None = None
        self._waiting: dict[_Constraint, asyncio.Task[str | InvalidRequestError]] = {}
        # One grammar at a time.
        self._busy = asyncio.Lock()

    async def compile(self, outputs: StructuredOutputs) -> str:
        """The grammar of a whole output, as llguidance reads it.

        Raises InvalidRequestError naming the constraint, and what of it cannot be enforced, and OverloadedError where
        too many wait already.
        """
        constraint = _Constraint.of(outputs)
        outcome = self._cache.get(constraint)
        if outcome is None:
            # Goes on when this caller leaves: to break off is to kill the process, which the next one would pay for.
            outcome = await asyncio.shield(self._begin(constraint))
        else:
            self._cache.move_to_end(constraint)
        if isinstance(outcome, InvalidRequestError):
            raise InvalidRequestError(outcome.message, field=outcome.field)
        return outcome

    async def close(self) -> None:
        """Ends the process, and all that waits for it."""
        for task in self._waiting.values():
            task.cancel()
        await asyncio.gather(*self._waiting.values(), return_exceptions=True)
        await self._end_worker()

    def _begin(self, constraint: _Constraint) -> asyncio.Task[str | InvalidRequestError]:
        """The one task that tries a constraint out."""
        task = self._waiting.get(constraint)
        if task is None:
            if len(self._waiting) >= _MAX_WAITING:
                raise OverloadedError(f"{_MAX_WAITING} grammars wait to be compiled already; try again later")
            task = self._waiting[constraint] = asyncio.create_task(self._compile_in_turn(constraint))
            task.add_done_callback(lambda done: self._forget(constraint, done))
        return task

    def _forget(self, constraint: _Constraint, done: asyncio.Task[str | InvalidRequestError]) -> None:
        del self._waiting[constraint]
        if not done.cancelled():
            done.exception()  # callers that left do not ask for it

    async def _compile_in_turn(self, constraint: _Constraint) -> str | InvalidRequestError:
        outcome: str | InvalidRequestError
        async with self._busy:
            try:
                outcome = await self._try_out(constraint)
            except InvalidRequestError as refusal:
                outcome = refusal
        self._cache[constraint] = outcome
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return outcome

    async def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await in_daemon_thread(worker.kill)

    async def _try_out(self, constraint: _Constraint) -> str:
        field = f"structured_outputs.{constraint.kind}"
        if self._worker is None:
            await self._start()
        question = {"kind": constraint.kind, "text": constraint.text, "compact": constraint.compact}
        answer = await self._ask(question, _ANSWER_TIMEOUT_S)
        if answer is None:
            await self._end_worker()
            logger.warning("the grammar process died of %s, %d characters", field, len(constraint.text))
            message = f"{field} is too complex: compiling it takes more time, memory or nesting than the server allows"
            raise InvalidRequestError(message, field=field)
        if "error" in answer:
            raise InvalidRequestError(f"{field} cannot be enforced: {answer['error']}", field=field)
        return answer["grammar"]

    async def _start(self) -> None:
        if self._tokenizer is None:
            message = "structured_outputs needs a model with a tokenizer.json, which this one lacks"
            raise InvalidRequestError(message, field="structured_outputs")
        if not self._eos_token_ids:
            message = "structured_outputs needs a model with an end-of-sequence token, which this one lacks"
            raise InvalidRequestError(message, field="structured_outputs")
        self._worker = _Worker()
        setup = {
            "tokenizer": str(self._tokenizer.absolute()),
            "vocab_size": self._vocab_size,
            "eos_token_ids": self._eos_token_ids,
        }
        answer = await self._ask(setup, _START_TIMEOUT_S)
        if answer is None or "error" in answer:
            await self._end_worker()
            reason = "it died" if answer is None else answer["error"]
            raise ServiceUnavailableError(f"structured output is not available: {reason}")

    async def _ask(self, question: Mapping[str, Any], timeout: float) -> dict[str, str] | None:
        """The worker's answer; None if it is dead. Raises ServiceUnavailableError after `timeout` seconds."""
        worker = self._worker
        assert worker is not None, "started by the caller"
        try:
            async with asyncio.timeout(timeout):
                return await in_daemon_thread(lambda: worker.ask(question))
        except TimeoutError as error:
            await self._end_worker()
            raise ServiceUnavailableError(f"no grammar could be compiled within {timeout:g} s") from error
        except BaseException:
            # Cancelled, say: the answer to come would be taken for the next one's.
            await self._end_worker()
            raise


class _Worker:
    """A running grammar process. Its methods block, so they are called in threads; it starts within milliseconds."""

    def __init__(self) -> None:
        # Not asyncio's: that of uvloop forks, which gRPC's threads do not take well; this one does not (vfork).
        # -P: the folder that the server was started in is no place to import from.
        command = (sys.executable, "-P", "-m", "quire.gateway.structured.worker")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, question: Mapping[str, Any]) -> dict[str, str] | None:
        """The answer; None if the process is dead."""
        assert self._process.stdin is not None and self._process.stdout is not None, "they are pipes"
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            return None
        if not line.endswith(b"\n"):
            return None
        answer: dict[str, str] = json.loads(line)
        return answer

    def kill(self) -> None:
        """Ends the process, which has nothing to lose, and with it a call of `ask` in another thread."""
        self._process.kill()
        self._process.wait(_KILL_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was still to be written
                    pipe.close()


def _kind_and_text(outputs: StructuredOutputs) -> tuple[str, str]:
    if outputs.json is not None:
        return "json", outputs.json_text or ""
    if outputs.regex is not None:
        return "regex", outputs.regex
    if outputs.choice is not None:
        return "choice", json.dumps(list(outputs.choice), ensure_ascii=False)
    if outputs.grammar is not None:
        return "grammar", outputs.grammar
    return "json_object", ""

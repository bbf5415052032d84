"""How the driver talks to an engine: JSON, one line for each request and reply. Standard library only, since every
adapter runs in its engine's own environment.

    {"op": "load", "model": folder, "threads": 2, "max_batch": 64, "max_len": 192, "number_format": "bf16"}
        -> {"flags": what was set, "version": …, "seconds": …}
    {"op": "generate", "prompts": [[ids]], "output_len": 64}
        -> {"seconds": …, "tokens": [how many each prompt got]}
    end of input -> the process ends

A failure is {"error": …}. Prompts are token ids, decoding is greedy and does not stop before output_len. Seconds are
taken around the engine's own call, inside its process.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Protocol


class Engine(Protocol):
    """An engine with a model loaded."""

    version: str
    # The settings that a row of the report states.
    flags: str

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> list[int]:
        """Runs all prompts together; how many tokens each got."""

    def close(self) -> None:
        """Ends what the engine has started."""


def serve_engine(load) -> None:
    """Answers requests until the input ends; `load(**fields)` makes the Engine."""
    # Libraries print to standard output, from C++ too: they get standard error, and the replies a copy.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = None
    try:
        for line in sys.stdin:
            request = json.loads(line)
            started = time.perf_counter()
            try:
                if request.pop("op") == "load":
                    engine = load(**request)
                    reply = {"flags": engine.flags, "version": engine.version}
                else:
                    reply = {"tokens": engine.generate(**request)}
                reply["seconds"] = time.perf_counter() - started
            except Exception as error:
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=replies, flush=True)
    finally:
        if engine is not None:
            engine.close()

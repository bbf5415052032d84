"""The grammar process: compiles what strangers send, so that no other process is the first to try it.

A grammar can be short and still take all memory, run for minutes, or recurse until the stack is full and the process
dies. So each is tried here, with less stack than an executor's thread has, a bound on memory and one on processor
time; the kernel enforces all three by killing the process. What survives is harmless for an executor.

Lines of JSON come on standard input and are answered on standard output. The first is {"tokenizer", "vocab_size",
"eos_token_ids"}, and its answer is {} or {"error"}; each later one is {"kind", "text", "compact"}, and its answer is
{"grammar"} or {"error"}. The end of the input ends the process.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from quire.errors import QuireError
from quire.gateway.structured.grammars import to_grammar
from quire.grammars import compile_grammar, load_grammar_tokenizer, reason_of

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# Processor time for one grammar; usual ones take a few milliseconds.
CPU_BUDGET_S: Final = 2.0
# Above what the process has with its tokenizer.
_MEMORY_BUDGET_BYTES: Final = 1 << 30
# Threads of an executor have 2 MiB or more.
_STACK_BYTES: Final = 1 << 20


def main() -> None:
    """Serves until the input ends."""
    # Control-C at a terminal reaches the whole process group; the gateway closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.stack_size(_STACK_BYTES)
    setup = json.loads(sys.stdin.readline() or "null")
    if setup is None:
        return
    try:
        tokenizer = load_grammar_tokenizer(Path(setup["tokenizer"]), setup["vocab_size"], setup["eos_token_ids"])
    except QuireError as error:
        _answer({"error": error.message})
        return
    _answer({})
    _limit_memory()
    for line in sys.stdin:
        _answer(_try_within_budget(tokenizer, json.loads(line)))


def _try_within_budget(tokenizer: LLTokenizer, request: dict[str, Any]) -> dict[str, str]:
    answer: dict[str, str] = {}

    def work() -> None:
        answer.update(_try(tokenizer, request))

    thread = threading.Thread(target=work)
    # SIGPROF, whose default action ends the process, comes when this much processor time is used up.
    signal.setitimer(signal.ITIMER_PROF, CPU_BUDGET_S)
    thread.start()
    thread.join()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return answer


def _try(tokenizer: LLTokenizer, request: dict[str, Any]) -> dict[str, str]:
    """Compiles a grammar and computes its first mask, where what cannot be satisfied shows."""
    try:
        grammar = to_grammar(request["kind"], request["text"], compact=request["compact"])
        matcher = compile_grammar(tokenizer, grammar)
        matcher.compute_bitmask()
        if matcher.is_error():
            return {"error": f"nothing matches it ({reason_of(matcher)})"}
    except QuireError as error:
        return {"error": error.message}
    except BaseException as error:  # llguidance's own, panics too: this request's fault, not the next one's
        return {"error": f"{type(error).__name__}: {error}"}
    return {"grammar": grammar}


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY_BUDGET_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _answer(answer: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

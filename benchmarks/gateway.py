"""What the gateway costs, in CPU time of its process: `python -P benchmarks/gateway.py`.

The physics. On a small machine gateway, scheduler, executor and clients share the cores, so every microsecond that the
gateway spends on a token is taken from the model: at 10,000 tokens/s, 25 us a token are a quarter of a core. The floor
is the kernel's and gRPC's. Every token that is streamed at once needs a write to its client's socket: 2 us where the
client is awake, 17 us where it has to be woken (a two-core virtual machine). A step's message costs 70 to 150 us to
receive, however many tokens it brings, and a unary call, which submits a request, 180 to 300 us. All else (taking the
message apart, text, stop strings, frames; parsing, tokenising, checking a request) is ours.

The set-up. The real gateway process, between a scheduler without a model (this program again, in a process of its own)
and raw clients in this process. The scheduler gives all running requests one token per step, at a fixed pace, which is
that of a tiny model: the cost per token depends on how many tokens a message brings. Its tokens are the prompt's own,
over and over. A run is `concurrency` clients, each sending one request after the other, all of one length. CPU time is
read from the process's clock, which neighbours disturb less than the wall's: two lengths give the cost of a token
(the slope) and of a request (what is left). Cases take turns; figures are medians over rounds.

At concurrency 1 it also reports the time from sending a request to its arrival at the scheduler.

`--compare SRC` measures the gateway of another source tree (its `src` folder) in the same rounds.

The last line is JSON: per gateway, kind and concurrency the microseconds of CPU per token and per request.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop

import quire
from quire import rpc
from quire.columns import pack_u32, pack_u64, unpack_u32
from quire.config import BUNDLED_MODEL
from quire.internal.v1 import executor_pb2, metrics_pb2, scheduler_pb2, scheduler_pb2_grpc
from quire.v1 import generate_pb2, generate_pb2_grpc

MODEL = "bench"
# Some 110 tokens of the bundled model.
PROMPT = "The ship had left the harbour before dawn, and nobody on board had yet spoken of the weather. " * 3
# Output tokens of the two kinds of run, whose difference is the cost of tokens.
SHORT, LONG = 8, 136
# By concurrency: seconds between steps, and the number of requests in a run.
PACES = {1: 0.001, 16: 0.002, 64: 0.006}
REQUESTS = {1: 6, 16: 32, 64: 128}
START_TIMEOUT_S = 60.0


# ---------------------------------------------------------------- the scheduler


@dataclass
class Running:
    """A request that gets tokens."""

    message: scheduler_pb2.SubmitRequest
    prompt: list[int]
    num_tokens: int = 0


class PacedScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Gives every running request a token per step. Prints when each request came (monotonic ns)."""

    def __init__(self) -> None:
        self._running: dict[int, Running] = {}
        self._arrived = asyncio.Event()

    async def Describe(self, request: Any, context: Any) -> scheduler_pb2.DescribeResponse:  # noqa: N802
        executor = executor_pb2.ExecutorDescription(model=MODEL, hidden_size=64)
        return scheduler_pb2.DescribeResponse(
            model=MODEL, max_model_len=2048, vocab_size=1 << 20, max_num_seqs=256, executors=[executor]
        )

    async def Submit(  # noqa: N802
        self, request: scheduler_pb2.SubmitRequest, context: Any
    ) -> scheduler_pb2.SubmitResponse:
        print(time.monotonic_ns(), flush=True)
        self._running[request.request_key] = Running(request, unpack_u32(request.prompt_token_ids))
        self._arrived.set()
        return scheduler_pb2.SubmitResponse()

    async def Abort(self, request: scheduler_pb2.AbortRequest, context: Any) -> Any:  # noqa: N802
        self._running.pop(request.request_key, None)
        return scheduler_pb2.AbortResponse()

    async def ReportMetrics(self, request: Any, context: Any) -> metrics_pb2.ReportMetricsResponse:  # noqa: N802
        return metrics_pb2.ReportMetricsResponse()

    async def StreamOutputs(  # noqa: N802
        self, request: scheduler_pb2.StreamOutputsRequest, context: Any
    ) -> AsyncIterator[scheduler_pb2.StepOutputs]:
        await context.send_initial_metadata(())
        for step in itertools.count():
            if not self._running:
                self._arrived.clear()
                await self._arrived.wait()
            started = time.monotonic()
            running = list(self._running.values())
            yield self._step(step, running)
            # The pace of a step, by how many it computes.
            pace = next(pace for batch, pace in PACES.items() if batch >= min(len(running), max(PACES)))
            await asyncio.sleep(max(started + pace - time.monotonic(), 0))

    def _step(self, step: int, running: list[Running]) -> scheduler_pb2.StepOutputs:
        message = scheduler_pb2.StepOutputs(
            step=step,
            request_keys=pack_u64(entry.message.request_key for entry in running),
            sequence_indices=pack_u32([0] * len(running)),
            attempts=pack_u32([0] * len(running)),
            positions=pack_u32(entry.num_tokens for entry in running),
            token_ids=pack_u32(entry.prompt[entry.num_tokens % len(entry.prompt)] for entry in running),
        )
        for entry in running:
            key = entry.message.request_key
            if entry.num_tokens == 0:
                message.started.add(request_key=key)
            entry.num_tokens += 1
            if entry.num_tokens == entry.message.sampling_params.max_tokens:
                message.finished.add(request_key=key, reason=generate_pb2.FINISH_REASON_LENGTH)
                self._running.pop(key, None)
        return message


async def serve_steps(address: str) -> None:
    """The scheduler's process; its parent ends it."""
    server = rpc.new_server()
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(PacedScheduler(), server)
    rpc.bind(server, address)
    await server.start()
    await server.wait_for_termination()


# ------------------------------------------------------------------ the processes


@contextlib.contextmanager
def child(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    with subprocess.Popen([sys.executable, "-P", *command], text=True, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


@dataclass
class Gateway:
    """A gateway process and its scheduler."""

    name: str
    pid: int
    port: int
    grpc_port: int
    scheduler: subprocess.Popen[str]

    def cpu_seconds(self) -> float:
        """CPU time of all threads of the process so far (the clock id is that of clock_getcpuclockid(3))."""
        return time.clock_gettime(~self.pid << 3 | 2)

    def next_arrival(self) -> float:
        """When the next request reached the scheduler, in monotonic seconds."""
        assert self.scheduler.stdout is not None
        return int(self.scheduler.stdout.readline()) / 1e9


@contextlib.contextmanager
def gateway(name: str, source: Path, folder: Path) -> Iterator[Gateway]:
    """A gateway of a source tree, ready, with a scheduler of its own."""
    address = f"unix:{folder}/{name}.sock"
    status, child_status = os.pipe()
    serve = ["-m", "quire", "gateway", "--scheduler", address, "--model", str(BUNDLED_MODEL), "--port", "0"]
    serve += ["--grpc-port", "0", "--served-model-name", MODEL, "--status-fd", str(child_status)]
    serve += ["--log-level", "warning"]
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(child([__file__, "--serve-steps", address], stdout=subprocess.PIPE))
        environment = {**os.environ, "PYTHONPATH": str(source)}
        process = stack.enter_context(child(serve, env=environment, pass_fds=[child_status]))
        os.close(child_status)
        with os.fdopen(status) as lines:
            ready = json.loads(lines.readline())
            yield Gateway(name, process.pid, ready["port"], ready["grpc_port"], scheduler)


# -------------------------------------------------------------------- the clients


# Sends a request for so many tokens, notes when (monotonic seconds), and reads the answer.
Ask = Callable[[int, list[float]], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """One way to ask."""

    name: str
    path: str
    body: dict[str, Any]


_CHAT = [{"role": "user", "content": PROMPT}]
KINDS = {
    kind.name: kind
    for kind in (
        Kind("completions stream", "/v1/completions", {"prompt": PROMPT, "stream": True}),
        Kind("chat stream", "/v1/chat/completions", {"messages": _CHAT, "stream": True}),
        Kind("completions", "/v1/completions", {"prompt": PROMPT}),
        Kind("grpc stream", "", {}),
    )
}


class RestClient:
    """A connection that is kept, as clients' pools keep theirs."""

    def __init__(self, kind: Kind, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._kind = kind
        self._reader = reader
        self._writer = writer

    async def ask(self, max_tokens: int, sent: list[float]) -> None:
        """One request, read to its end. Raises AssertionError for an answer of the wrong length."""
        body = json.dumps({"model": MODEL, "max_tokens": max_tokens, "temperature": 0, **self._kind.body}).encode()
        head = f"POST {self._kind.path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
        sent.append(time.monotonic())
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        if "stream" in self._kind.body:
            events = await self._reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert events.count(b'"finish_reason":"length"') == 1
        else:
            length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            whole = json.loads(await self._reader.readexactly(length))
            assert whole["usage"]["completion_tokens"] == max_tokens


class GrpcClient:
    """Calls on one channel."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def ask(self, max_tokens: int, sent: list[float]) -> None:
        """One call, read to its end. Raises AssertionError for an answer of the wrong length."""
        params = generate_pb2.SamplingParams(max_tokens=max_tokens, temperature=0)
        sent.append(time.monotonic())
        num_tokens = 0
        async for response in self._stub.Generate(generate_pb2.GenerateRequest(text=PROMPT, sampling_params=params)):
            num_tokens += sum(len(delta.token_ids) for delta in response.deltas)
        assert num_tokens == max_tokens


@contextlib.asynccontextmanager
async def clients(target: Gateway, kind: Kind, count: int) -> AsyncIterator[list[Any]]:
    """Connected clients."""
    async with contextlib.AsyncExitStack() as stack:
        if kind.path:
            connections = [await asyncio.open_connection("127.0.0.1", target.port, limit=1 << 24) for _ in range(count)]
            for _, writer in connections:
                stack.callback(writer.close)
            yield [RestClient(kind, reader, writer) for reader, writer in connections]
        else:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{target.grpc_port}"))
            yield [GrpcClient(generate_pb2_grpc.GenerateServiceStub(channel))] * count


# -------------------------------------------------------------------- measuring


@dataclass
class Series:
    """The rounds of one case."""

    per_token: list[float] = field(default_factory=list)
    per_request: list[float] = field(default_factory=list)
    to_scheduler: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians, in microseconds."""
        return {name: round(statistics.median(values) * 1e6, 1) for name, values in vars(self).items() if values}


async def run_requests(asks: list[Ask], max_tokens: int, count: int) -> list[float]:
    """`count` requests over the clients, each client's one after the other; returns when they were sent."""
    sent: list[float] = []

    async def work(ask: Ask) -> None:
        for _ in range(count // len(asks)):
            await ask(max_tokens, sent)

    await asyncio.gather(*map(work, asks))
    return sent


async def measure(target: Gateway, kind: Kind, concurrency: int, series: Series) -> None:
    """One round of a case: a run of short requests and one of long ones."""
    count = REQUESTS[concurrency]
    costs: dict[int, float] = {}
    async with clients(target, kind, concurrency) as connected:
        asks: list[Ask] = [client.ask for client in connected]
        for max_tokens in (SHORT, LONG):
            before = target.cpu_seconds()
            sent = await run_requests(asks, max_tokens, count)
            costs[max_tokens] = (target.cpu_seconds() - before) / count
            arrivals = [target.next_arrival() for _ in range(count)]
            if concurrency == 1:
                series.to_scheduler += [arrived - left for arrived, left in zip(arrivals, sent, strict=True)]
    per_token = (costs[LONG] - costs[SHORT]) / (LONG - SHORT)
    series.per_token.append(per_token)
    series.per_request.append(costs[SHORT] - SHORT * per_token)


async def compare(targets: list[Gateway], kinds: list[Kind], levels: list[int], rounds: int) -> list[dict[str, Any]]:
    """All cases, in turn, `rounds` times after one that warms up."""
    cases = list(itertools.product(kinds, levels, targets))
    table = [Series() for _ in cases]
    for round_ in range(rounds + 1):
        for (kind, concurrency, target), series in zip(cases, table, strict=True):
            await measure(target, kind, concurrency, series if round_ else Series())
    return [
        {"gateway": target.name, "kind": kind.name, "concurrency": concurrency, **series.summary()}
        for (kind, concurrency, target), series in zip(cases, table, strict=True)
    ]


def report(results: list[dict[str, Any]]) -> None:
    """A line per case."""
    for result in results:
        line = f"{result['gateway']:>8}  {result['kind']:<18} concurrency {result['concurrency']:>2}:"
        line += f" {result['per_token']:6.1f} us a token, {result['per_request']:6.0f} us a request"
        if "to_scheduler" in result:
            line += f"; {result['to_scheduler']:.0f} us to the scheduler"
        print(line)


def main() -> None:
    """Measure every case, or be the scheduler."""
    parser = argparse.ArgumentParser(description="CPU time of the gateway per streamed token and per request.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--concurrency", nargs="+", type=int, choices=list(PACES), default=list(PACES))
    parser.add_argument("--compare", type=Path, metavar="SRC", help="src folder of another tree to measure too")
    parser.add_argument("--serve-steps", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_steps is not None:
        uvloop.run(serve_steps(options.serve_steps))
        return
    sources = {"this": Path(quire.__file__).parents[1]}
    if options.compare is not None:
        sources["other"] = options.compare.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        targets = [stack.enter_context(gateway(name, source, Path(folder))) for name, source in sources.items()]
        kinds = [KINDS[name] for name in options.kinds]
        results = uvloop.run(compare(targets, kinds, options.concurrency, options.rounds))
    report(results)
    print(json.dumps({"model": BUNDLED_MODEL.name, "prompt_characters": len(PROMPT), "results": results}))


if __name__ == "__main__":
    main()

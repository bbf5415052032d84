"""What a step costs beside the model: a plan's way to an executor in another process, and its result's way back.

The physics. A decode step's plan has about 25 bytes per sequence and its result 8: 2 kB at batch 64, which take
microseconds to copy and parse. What costs is to wake the other process: a system call puts its thread on a core's
queue, the core switches to it, and before that it may have to be interrupted and leave an idle state. A round trip has
two such wake-ups; two bare eventfds have nothing else, and theirs is measured here as the limit. Above it lies the work
of both sides in Python: serialising, copying, a turn of the event loop. A gRPC stream adds HTTP/2, a socket, and on
each side threads of its own that wake each other and the event loop.

The comparison. A process that computes nothing serves steps with the executor's own service, one process for each
transport; this process is the scheduler's side, its own channels on uvloop. `round trip` sends a plan and waits for its
result. `step loop` is the scheduler's StepLoop, with two steps in flight and nothing to plan, so that wake-ups overlap
and the slower side's work remains; and the CPU time of both processes in it, which is what a small machine loses beside
the model. The transports alternate, sample by sample. Figures are medians over samples (of the median round trip in a
sample; of the mean step in a sample).

The last line is JSON: per case and transport the microseconds.

    .venv/bin/python benchmarks/step_transport.py
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from quire import rpc
from quire.columns import pack_u32
from quire.executor.pending_step import FinishedStep
from quire.internal.v1 import executor_pb2, executor_pb2_grpc
from quire.scheduler.executor_client import ExecutorClient, StepChannel
from quire.scheduler.step_loop import StepLoop, Work
from quire.step_counters import StepCounters

BATCHES: Final = (1, 16, 64)
TRANSPORTS: Final = ("ring", "grpc")
EPOCH: Final = 1
NUM_WARM_UP: Final = 30


def decode_plan(batch: int) -> executor_pb2.StepPlan:
    """A decode step of `batch` sequences, one in 16 of which gets a new block."""
    zeros = [0] * batch
    appended = [int(row % 16 == 0) for row in range(batch)]
    return executor_pb2.StepPlan(
        epoch=EPOCH,
        step=1,
        slots=pack_u32(range(batch)),
        computed_tokens=pack_u32(1000 + row for row in range(batch)),
        query_lengths=pack_u32([1] * batch),
        samples=b"\1" * batch,
        block_tables=[
            executor_pb2.BlockTableUpdate(
                kept=pack_u32(zeros), appended=pack_u32(appended), block_ids=pack_u32([7] * sum(appended))
            )
        ],
    )


class NullRunner:
    """Stands for the ModelRunner: answers every plan at once, with a token per row."""

    max_in_flight = 1
    completion_fd = None

    def launch(self, plan: executor_pb2.StepPlan, counters: StepCounters) -> FinishedStep:
        return FinishedStep(
            executor_pb2.StepResult(epoch=plan.epoch, step=plan.step, slots=plan.slots, token_ids=plan.slots)
        )

    def use_pause(self, *, idle: bool) -> bool:
        return False

    def drain(self) -> None:
        """Nothing is in flight."""

    def detach(self) -> None:
        """There is no pool."""

    def close(self) -> None:
        """There is no device."""


async def serve(address: str) -> None:
    """The executor's process: serves until its standard input is closed."""
    from quire.executor.service import ExecutorService

    service = ExecutorService(NullRunner())
    server = rpc.new_server()
    executor_pb2_grpc.add_ExecutorServiceServicer_to_server(service, server)
    rpc.bind(server, address)
    await server.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await service.close()
    await server.stop(1)


def echo(requests: int, answers: int) -> None:
    """The other end of `eventfd_round_trip`; a value of 2 ends it."""
    while os.eventfd_read(requests) == 1:
        os.eventfd_write(answers, 1)


@contextlib.contextmanager
def child(*arguments: object, **popen: Any) -> Iterator[subprocess.Popen[str]]:
    """This program in another process, until its standard input is closed."""
    line = [sys.executable, "-P", __file__, *map(str, arguments)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **popen) as process:
        yield process


def eventfd_round_trip(repeats: int) -> float:
    """Median microseconds of two wake-ups, one in each direction, and nothing else."""
    requests, answers = os.eventfd(0), os.eventfd(0)
    times = []
    with child("--echo", requests, answers, pass_fds=(requests, answers)):
        for _ in range(NUM_WARM_UP + repeats):
            started = time.perf_counter_ns()
            os.eventfd_write(requests, 1)
            os.eventfd_read(answers)
            times.append(time.perf_counter_ns() - started)
        os.eventfd_write(requests, 2)
    return statistics.median(times[NUM_WARM_UP:]) / 1e3


@dataclass
class Treadmill:
    """Stands for the Scheduler: the same plan again and again, until `steps` results have come."""

    message: executor_pb2.StepPlan
    steps: int
    planned: int = 0
    taken_in: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)
    # What the step loop reads of a plan.
    step: int = 1
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    chunks: tuple[()] = ()
    has_work: bool = True

    def schedule(self, lane: int) -> Treadmill | None:
        if self.planned == self.steps:
            return None
        self.planned += 1
        return self

    def to_proto(self, epoch: int) -> executor_pb2.StepPlan:
        return self.message

    def update_from_output(self, plan: Treadmill, result: executor_pb2.StepResult) -> None:
        self.taken_in += 1
        if self.taken_in == self.steps:
            self.done.set()

    def publish(self, events: None) -> None:
        """It is its own OutputRouter."""


async def round_trip(channel: StepChannel, plan: executor_pb2.StepPlan, repeats: int) -> float:
    """Median microseconds from a plan to its result."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter_ns()
        await channel.send(plan)
        await channel.receive()
        times.append(time.perf_counter_ns() - started)
    return statistics.median(times) / 1e3


async def step_loop(
    channel: StepChannel, plan: executor_pb2.StepPlan, repeats: int, cpu_time: Callable[[], float]
) -> tuple[float, float]:
    """Mean microseconds per step, and of CPU time."""
    treadmill = Treadmill(plan, repeats)
    loop: Any = StepLoop(0, treadmill, channel, treadmill, Work(), EPOCH)
    started, used = time.perf_counter(), cpu_time()
    running = asyncio.create_task(loop.run())
    finished = asyncio.create_task(treadmill.done.wait())
    await asyncio.wait((running, finished), return_when=asyncio.FIRST_COMPLETED)
    if not finished.done():
        running.result()  # raises what ended the loop
    taken, used = time.perf_counter() - started, cpu_time() - used
    running.cancel()
    return taken / repeats * 1e6, used / repeats * 1e6


@dataclass
class Executor:
    """An executor's process, and an open channel to it."""

    pid: int
    channel: StepChannel

    def cpu_time(self) -> float:
        """Seconds of CPU time that it and this process have used."""
        # The kernel's number for the CPU clock of another process; see clock_getcpuclockid(3).
        return time.process_time() + time.clock_gettime((~self.pid << 3) | 2)


@contextlib.asynccontextmanager
async def running_executor(transport: str) -> AsyncIterator[Executor]:
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder) / 'executor.sock'}"
        with child("--executor", address) as process:
            process.stdout.readline()
            client = ExecutorClient(0, address)
            channel = await client.open_steps(transport, 10)
            yield Executor(process.pid, channel)
            await channel.close()
            await client.close()


async def measure(samples: int, repeats: int) -> list[dict[str, Any]]:
    """Every case over every transport, interleaved."""
    taken: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    async with contextlib.AsyncExitStack() as stack:
        executors = {name: await stack.enter_async_context(running_executor(name)) for name in TRANSPORTS}
        for _ in range(samples):
            for batch in BATCHES:
                for transport, executor in executors.items():
                    plan = decode_plan(batch)
                    await round_trip(executor.channel, plan, NUM_WARM_UP)
                    trip = await round_trip(executor.channel, plan, repeats)
                    step, cpu = await step_loop(executor.channel, plan, repeats, executor.cpu_time)
                    taken.setdefault((batch, transport), []).append((trip, step, cpu))
    results = []
    for (batch, transport), values in taken.items():
        trip, step, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        figures = {"round_trip_us": round(trip, 1), "step_loop_us": round(step, 1), "step_loop_cpu_us": round(cpu, 1)}
        results.append({"batch": batch, "transport": transport, **figures})
    return results


def main() -> None:
    """Measure, print a table, and JSON."""
    parser = argparse.ArgumentParser(description="A step's way through shared memory and over gRPC.")
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=300, help="round trips in a sample")
    parser.add_argument("--executor", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--echo", metavar="FD", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.executor:
        uvloop.run(serve(options.executor))
        return
    if options.echo:
        echo(*options.echo)
        return

    limit = eventfd_round_trip(options.repeats)
    results = uvloop.run(measure(options.samples, options.repeats))
    print(f"two bare eventfds: {limit:.0f} us there and back")
    print("batch  transport  round trip  step loop  its CPU time, us")
    for row in results:
        print("{batch:5}  {transport:9}  {round_trip_us:10}  {step_loop_us:9}  {step_loop_cpu_us:12}".format(**row))
    print(json.dumps({"eventfd_round_trip_us": round(limit, 1), "results": results}))


if __name__ == "__main__":
    main()

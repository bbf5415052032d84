"""The flags of `quire bench`, with their defaults, once; the names are those of `vllm bench`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from quire.config import LocalSettings
from quire.settings import Panel, Settings

METRICS = ("ttft", "tpot", "itl", "e2el")

Backend = Literal["openai", "openai-chat", "grpc"]


def _drawable(path: Path | None) -> Path | None:
    if path is not None and path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path} is neither a .png nor a .svg")
    return path


class TargetOptions(Settings):
    """Which server."""

    panel: ClassVar[Panel] = Panel.TARGET

    backend: Backend = Field(
        "openai", description="openai: /v1/completions; openai-chat: /v1/chat/completions; grpc: Quire's gRPC API."
    )
    base_url: str = Field("http://127.0.0.1:8000", description="URL of the server, or host:port with --backend grpc.")
    ssl_ca_certs: Path | None = Field(
        None, description="Trust servers whose certificate one of these has signed (PEM); with gRPC this asks for TLS."
    )
    model: str | None = Field(None, description="Model to ask for; default: the first one that the server lists.")
    vocab_size: int | None = Field(
        None,
        ge=2,
        description="Prompts hold token ids below it; default: from the model's config.json, if it is a folder.",
    )
    ready_check_timeout_sec: float = Field(600.0, ge=0, description="How long the server may take to answer at all.")
    request_timeout: float = Field(3600.0, gt=0, description="Seconds after which a request has failed.")

    @field_validator("base_url")
    @classmethod
    def _without_slash(cls, url: str) -> str:
        return url.rstrip("/")


class WorkloadOptions(Settings):
    """The prompts and the answers, in tokens."""

    panel: ClassVar[Panel] = Panel.WORKLOAD

    num_prompts: int = Field(1000, ge=1, description="Requests to send.")
    num_warmups: int = Field(0, ge=0, description="Requests that are sent before and not counted.")
    random_input_len: int = Field(1024, ge=1, description="Random tokens of a prompt, after the shared prefix.")
    random_output_len: int = Field(128, ge=1, description="Tokens of an answer.")
    random_range_ratio: float = Field(
        0.0, ge=0, lt=1, description="Lengths are drawn from length * (1 ± ratio); 0: all are equal."
    )
    random_prefix_len: int = Field(0, ge=0, description="Tokens that all prompts begin with.")
    seed: int = Field(0, ge=0, description="Of prompts, lengths and arrival times.")
    ignore_eos: bool = Field(False, description="Generate the full length.")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy.")


class ArrivalOptions(Settings):
    """When requests are sent."""

    panel: ClassVar[Panel] = Panel.ARRIVALS

    request_rate: float = Field(
        math.inf, gt=0, description="Requests per second on average; inf: as soon as --max-concurrency lets them."
    )
    burstiness: float = Field(
        1.0, gt=0, description="Shape of the gamma-distributed gaps: 1 is a Poisson process, less comes in bursts."
    )
    max_concurrency: int | None = Field(None, ge=1, description="Most requests in flight; default: no limit.")


class ReportOptions(Settings):
    """What is reported."""

    panel: ClassVar[Panel] = Panel.REPORT

    percentile_metrics: str = Field(
        "ttft,tpot,itl", description="Comma-separated metrics that are summarised: ttft, tpot, itl, e2el."
    )
    metric_percentiles: str = Field("99", description="Comma-separated percentiles of these metrics.")
    save_result: bool = Field(False, description="Write a JSON file.")
    save_detailed: bool = Field(False, description="Every request's times are in it too.")
    result_dir: Path = Field(Path(), description="Folder of that file.")
    result_filename: Path | None = Field(
        None, description="Name of that file; default: made of backend, rate, model and time."
    )
    plot: Path | None = Field(None, description="Draw latencies and load over time to a .png or .svg (extra: bench).")
    disable_tqdm: bool = Field(False, description="No progress bar.")

    @field_validator("percentile_metrics")
    @classmethod
    def _known_metrics(cls, value: str) -> str:
        unknown = [name for name in value.split(",") if name not in METRICS]
        if unknown:
            raise ValueError(f"{', '.join(map(repr, unknown))}: the metrics are {', '.join(METRICS)}")
        return value

    @field_validator("metric_percentiles")
    @classmethod
    def _percentages(cls, value: str) -> str:
        if not all(0 <= float(part) <= 100 for part in value.split(",")):
            raise ValueError("percentiles lie between 0 and 100")
        return value

    _drawable = field_validator("plot")(_drawable)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names out of METRICS."""
        return tuple(self.percentile_metrics.split(","))

    @property
    def percentiles(self) -> tuple[float, ...]:
        """In percent."""
        return tuple(float(part) for part in self.metric_percentiles.split(","))


class ServeBenchSettings(TargetOptions, WorkloadOptions, ArrivalOptions, ReportOptions):
    """`quire bench serve`."""


class ThroughputSettings(LocalSettings):
    """`quire bench throughput`."""

    panel: ClassVar[Panel] = Panel.WORKLOAD

    input_len: int = Field(1024, ge=1, description="Tokens of a prompt.")
    output_len: int = Field(128, ge=1, description="Tokens of an answer.")
    num_prompts: int = Field(1000, ge=1, description="Requests, all given at once.")
    num_warmups: int = Field(1, ge=0, description="Requests that run before and are not counted.")
    seed: int = Field(0, ge=0, description="Of the prompts.")
    output_json: Path | None = Field(None, description="Where the result is written.")


class LatencySettings(LocalSettings):
    """`quire bench latency`."""

    panel: ClassVar[Panel] = Panel.WORKLOAD

    input_len: int = Field(32, ge=1, description="Tokens of a prompt.")
    output_len: int = Field(128, ge=1, description="Tokens of an answer.")
    batch_size: int = Field(8, ge=1, description="Prompts of a batch.")
    num_iters_warmup: int = Field(10, ge=0, description="Batches that run before and are not counted.")
    num_iters: int = Field(30, ge=1, description="Batches that are timed.")
    seed: int = Field(0, ge=0, description="Of the prompts.")
    output_json: Path | None = Field(None, description="Where the result is written.")

    @model_validator(mode="after")
    def _batch_runs_together(self) -> Self:
        if self.batch_size > self.max_num_seqs:
            raise ValueError(
                f"a batch of {self.batch_size} does not run at once with --max-num-seqs {self.max_num_seqs}"
            )
        return self


class CompareSettings(LocalSettings):
    """`quire bench compare`."""

    users: str = Field("1,5,10,20", description="Comma-separated numbers of users, each with one request at a time.")
    requests_per_user: int = Field(2, ge=1, description="Requests that each user sends, one after another.")
    output_len: int = Field(64, ge=1, description="Tokens of an answer; both sides generate exactly so many.")
    prompts: Path | None = Field(
        None, description="Text file with a prompt on each line; default: built-in ones of 5 to 60 words."
    )
    hf_mode: Literal["sequential", "batch"] = Field(
        "sequential",
        description="How generate serves several users: one request after another, or all users' as one padded batch.",
    )
    hf_threads: int | None = Field(
        None, ge=1, description="Compute threads of generate; default: 1 or all (--threads), whichever is faster."
    )
    rounds: int = Field(3, ge=1, description="How often both are measured, in turn; medians count.")
    round_timeout: float = Field(3600.0, gt=0, description="Seconds that one side may take for one number of users.")
    output_json: Path | None = Field(None, description="Where the result is written.")
    plot: Path | None = Field(
        None, description="Draw throughput, latency and ratios against users to a .png or .svg (extra: bench)."
    )
    # So that the texts can be compared: with fewer bits, equal arithmetic in another order gives other tokens.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="Type of weights and arithmetic on both sides; auto: the checkpoint's."
    )
    # Prompts come again in each round, and generate has no cache of them.
    enable_prefix_caching: bool = Field(False, description="Reuse KV blocks of equal prefixes, on Quire's side.")

    _drawable = field_validator("plot")(_drawable)

    @field_validator("users")
    @classmethod
    def _numbers(cls, value: str) -> str:
        parts = value.split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            raise ValueError("numbers of users are positive and separated by commas, such as 1,5,10,20")
        if len(set(map(int, parts))) < len(parts):
            raise ValueError("a number of users comes twice")
        return value

    @property
    def user_counts(self) -> tuple[int, ...]:
        """As they were given."""
        return tuple(int(part) for part in self.users.split(","))

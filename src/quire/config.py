"""All settings of a server, with their defaults, once.

The groups below are mixed into one settings class per process; `settings.flags()` passes a process's share of
`quire serve`'s settings on to it. What is computed from settings (how many blocks fit) is a result and lives elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from pydantic import ByteSize, Field, ValidationInfo, field_validator

from quire.settings import Counts, Panel, Settings, Texts

BUNDLED_MODEL = Path(__file__).parent / "bundled" / "quire-tiny"


class ModelOptions(Settings):
    """Which model is served."""

    panel: ClassVar[Panel] = Panel.MODEL

    model: str = Field(
        str(BUNDLED_MODEL), description="Folder or hub id of a Hugging Face checkpoint; default: the bundled model."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")


class PrecisionOptions(Settings):
    """How the model is held and computed."""

    panel: ClassVar[Panel] = Panel.MODEL

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of weights and arithmetic; auto: the checkpoint's."
    )
    quantization: Literal["int8", "int8_weight_only", "int4", "fp8"] | None = Field(
        None,
        description="Quantise the weights while loading; on a CPU int8 (activations too), int8_weight_only or int4 (in "
        "groups of 32), on GPUs from Hopper on fp8 (activations too).",
    )
    kv_cache_dtype: Literal["auto", "float32", "float16", "bfloat16", "int8", "fp8", "fp8_e4m3"] = Field(
        "auto",
        description="Type of the KV cache; auto: that of --dtype. int8 and fp8 (the same as fp8_e4m3) have a scale for "
        "each token and head. float16 and fp8: on cuda only.",
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Longest prompt plus output, in tokens; default: the model's context."
    )


class ComputeOptions(Settings):
    """What the model is computed with."""

    panel: ClassVar[Panel] = Panel.EXECUTORS

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one, else cpu.")
    isa: Literal["auto", "amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable"] = Field(
        "auto", description="Instruction set of the kernels on the CPU; auto: the best that the machine has."
    )
    threads: int | None = Field(
        None, ge=1, description="Compute threads of an executor on the CPU; default: the usable cores."
    )
    batch_invariant: bool = Field(
        True,
        description="A sequence's numbers do not depend on what is computed beside it; turned off, GPUs multiply with "
        "cuBLAS. CPUs are always invariant.",
    )


class GraphOptions(Settings):
    """CUDA graphs."""

    panel: ClassVar[Panel] = Panel.EXECUTORS

    enforce_eager: bool = Field(False, description="Capture no CUDA graphs of decode steps.")
    cudagraph_capture_sizes: Counts = Field(
        [],
        description="Sequences in the decode steps that are captured (repeat the flag); smaller steps are padded. "
        "default: 1, 2, 4, every 8th up to 256, every 16th up to 512, within --max-num-seqs.",
    )
    max_cudagraph_capture_size: int | None = Field(
        None, ge=1, description="Sequences beyond which no decode step is captured; default: 512."
    )


Sandbox: TypeAlias = Literal["auto", "require", "off"]


class SandboxOptions(Settings):
    """What executors may do besides computing."""

    panel: ClassVar[Panel] = Panel.EXECUTORS

    sandbox: Sandbox = Field(
        "auto",
        description="Executors give up the network and changing files once they serve; auto: on a CPU, where the "
        "kernel can; require: or they do not start.",
    )


class BlockOptions(Settings):
    """KV blocks."""

    panel: ClassVar[Panel] = Panel.MEMORY

    block_size: int = Field(16, ge=1, le=1024, description="Tokens in a KV block.")


class CacheOptions(BlockOptions):
    """The KV pool."""

    panel: ClassVar[Panel] = Panel.MEMORY

    kv_cache_memory: ByteSize | None = Field(
        None, description="Size of the KV pool, such as 2GiB; default: what the requests can use, within free memory."
    )
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the device's memory (a GPU's, else the host's) for weights and KV pool together, where "
        "--kv-cache-memory gives no size.",
    )
    num_gpu_blocks_override: int | None = Field(
        None, ge=1, description="Size of the KV pool in blocks, where --kv-cache-memory gives none."
    )
    kv_pool: Path | None = Field(
        None, description="File that holds the KV pool and outlives the server; default: anonymous memory."
    )
    enable_prefix_caching: bool = Field(True, description="Reuse KV blocks of equal prefixes.")
    swap_space: float = Field(
        0.0,
        ge=0,
        description="Host memory, in GiB, for cached blocks that the KV pool has no room for; a prefix hit brings them "
        "back. 0: none.",
    )

    @field_validator("swap_space")
    @classmethod
    def _check_prefix_caching(cls, swap_space: float, info: ValidationInfo) -> float:
        if swap_space and not info.data.get("enable_prefix_caching", True):
            raise ValueError("needs the prefix cache, which --no-enable-prefix-caching turns off")
        return swap_space


SchedulingPolicy: TypeAlias = Literal["fcfs", "priority", "fair"]
StepTransport: TypeAlias = Literal["auto", "ring", "grpc"]


class StepOptions(Settings):
    """What a step may hold: schedulers keep to it, and executors have memory for it."""

    panel: ClassVar[Panel] = Panel.SCHEDULING

    max_num_seqs: int = Field(256, ge=1, description="Sequences that run at the same time.")
    max_num_batched_tokens: int = Field(
        512, ge=1, description="Token budget of a step; longer prompts are computed in chunks."
    )


class SchedulingOptions(StepOptions):
    """What is computed when, and how it travels."""

    panel: ClassVar[Panel] = Panel.SCHEDULING

    scheduling_policy: SchedulingPolicy = Field(
        "fcfs",
        description="Order of requests: by arrival, by their priority (lowest first) and then arrival, or so that "
        "tenants get tokens by their weights.",
    )
    max_queued_requests: int | None = Field(
        None, ge=1, description="Requests that may wait, beyond which one gets 429; default: 4 times --max-num-seqs."
    )
    max_queued_tokens: int | None = Field(
        None, ge=1, description="Prompt tokens that may wait, beyond which a request gets 429; default: any number."
    )
    step_transport: StepTransport = Field(
        "auto", description="How steps reach an executor; auto: through shared memory on this host, else over gRPC."
    )


class ServingOptions(ModelOptions):
    """Where clients connect."""

    panel: ClassVar[Panel] = Panel.API

    host: str = Field("127.0.0.1", description="Address for REST and gRPC.")
    port: int = Field(8000, ge=0, le=65535, description="REST port; 0 picks a free one.")
    grpc_port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 picks a free one.")
    served_model_name: Texts = Field(
        [],
        description="Name of the model in the API; repeat it for more names, answers carry the first. "
        "default: the value of --model (the bundled one: quire-tiny).",
    )
    max_logprobs: int = Field(20, ge=0, description="Largest `logprobs` or `top_logprobs` a request may ask for.")
    max_concurrent_requests: int | None = Field(
        None, ge=1, description="Requests (prompts) in the server, running or waiting, beyond which one gets 429."
    )

    @property
    def model_names(self) -> list[str]:
        """The names clients may use for the model."""
        return self.served_model_name or [BUNDLED_MODEL.name if self.model == str(BUNDLED_MODEL) else self.model]

    @field_validator("grpc_port")
    @classmethod
    def _check_ports_differ(cls, grpc_port: int, info: ValidationInfo) -> int:
        if grpc_port and grpc_port == info.data.get("port"):
            raise ValueError(f"must not be --port ({grpc_port}), which serves REST")
        return grpc_port

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return self.model_names[0]


class AccessOptions(Settings):
    """Who may call, and from where."""

    panel: ClassVar[Panel] = Panel.SECURITY

    api_keys: Path | None = Field(
        None,
        description="YAML file of API keys (their SHA-256), each with its tenant, weight and limits; read again when "
        "it changes.",
    )
    api_key: Texts = Field(
        [],
        repr=False,
        description="Key that clients must send (repeat for more); better in QUIRE_API_KEY, which other users of this "
        "machine cannot see. default: none is asked for.",
    )
    allowed_origins: Texts = Field(["*"], description="Origins whose pages may call the REST API (CORS).")
    allowed_methods: Texts = Field(["*"], description="Methods that they may use.")
    allowed_headers: Texts = Field(["*"], description="Headers that they may send.")
    allow_credentials: bool = Field(False, description="Whether they may send cookies.")
    root_path: str = Field(
        "", pattern="^(/.*[^/])?$", description="Path under which a proxy serves the REST API, such as /llm."
    )


class TlsOptions(Settings):
    """TLS for REST and gRPC."""

    panel: ClassVar[Panel] = Panel.SECURITY

    ssl_certfile: Path | None = Field(None, description="Certificate chain of the server (PEM).")
    ssl_keyfile: Path | None = Field(None, description="Its private key (PEM).")
    ssl_ca_certs: Path | None = Field(None, description="Certificates that clients' ones must be signed by (PEM).")
    ssl_cert_reqs: Literal["none", "optional", "required"] = Field(
        "none", description="Whether clients must have a certificate; its common name is the tenant."
    )


class EdgeOptions(Settings):
    """What a client's connection may take."""

    panel: ClassVar[Panel] = Panel.API

    max_connections: int = Field(
        4096, ge=1, description="Connections that each gateway holds, on REST and on gRPC; one more is refused."
    )
    header_timeout: float = Field(20.0, gt=0, description="Seconds in which the headers of a request must arrive.")
    body_timeout: float = Field(
        30.0, gt=0, description="Seconds in which its body must arrive, and one more for each 16 KiB of it."
    )


ToolCallParser: TypeAlias = Literal["auto", "hermes", "llama3_json", "mistral", "none"]
ReasoningParser: TypeAlias = Literal["auto", "qwen3", "deepseek_r1", "mistral", "none"]


class ChatOptions(Settings):
    """How the model's chats are read."""

    panel: ClassVar[Panel] = Panel.CHAT

    tool_call_parser: ToolCallParser = Field(
        "auto", description="How the model writes calls of tools; auto: as its chat template does."
    )
    enable_auto_tool_choice: bool = Field(True, description='Take tools with tool_choice "auto", the default.')
    reasoning_parser: ReasoningParser = Field(
        "auto", description="How the model marks its thoughts; auto: as its chat template does."
    )
    trust_request_chat_template: bool = Field(False, description="Take a chat_template in a request.")


class OperationOptions(Settings):
    """Starting, stopping and logging."""

    panel: ClassVar[Panel] = Panel.OPERATION

    startup_timeout: float = Field(600.0, gt=0, description="Seconds until a start that is not ready is given up.")
    shutdown_timeout: float = Field(
        15.0, ge=0, description="Seconds that running requests may take to end after SIGTERM."
    )
    watchdog_timeout: float = Field(
        20.0, gt=0, description="Seconds without any progress after which a process counts as hung and is replaced."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object each.")


class StatisticsOptions(Settings):
    """Statistics."""

    panel: ClassVar[Panel] = Panel.OBSERVABILITY

    disable_log_stats: bool = Field(
        False, description="Do not log throughput, requests and cache usage every ten seconds."
    )


class TraceOptions(Settings):
    """Traces."""

    panel: ClassVar[Panel] = Panel.OBSERVABILITY

    otlp_traces_endpoint: str | None = Field(
        None, description="Collector that gets a trace of each request (OTLP over gRPC), such as http://localhost:4317."
    )

    @field_validator("otlp_traces_endpoint")
    @classmethod
    def _check_collector(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^/\s]+/?", url):
            raise ValueError("must be a URL without a path, such as http://localhost:4317, or https:// for TLS")
        return url


MetricsAlias: TypeAlias = Literal["vllm"]


class ObservationOptions(Settings):
    """What the server tells of itself."""

    panel: ClassVar[Panel] = Panel.OBSERVABILITY

    metrics_alias: MetricsAlias | None = Field(
        None, description="Give the metrics that vLLM has a second time under its prefix, for boards made for it."
    )
    enable_log_requests: bool = Field(True, description="Log a line for each request when it ends, with its timings.")
    log_prompts: bool = Field(False, description="Write prompts and outputs into these lines too.")
    max_log_len: int | None = Field(
        None, ge=0, description="Characters of a prompt or an output that are logged; default: all."
    )
    live_page: bool = Field(True, description="Serve the page at / with a playground and a view of the server.")


class InternalTlsOptions(Settings):
    """TLS between processes on several hosts."""

    panel: ClassVar[Panel] = Panel.SECURITY

    internal_tls_cert: Path | None = Field(None, description="Certificate that this process shows to others (PEM).")
    internal_tls_key: Path | None = Field(None, description="Its private key (PEM).")
    internal_tls_ca: Path | None = Field(None, description="Certificates that theirs must be signed by (PEM).")
    allow_insecure_internal: bool = Field(
        False, description="Talk to processes on other hosts without TLS; whoever reaches them can do everything."
    )


class ProcessOptions(OperationOptions, InternalTlsOptions):
    """How a single process is watched."""

    panel: ClassVar[Panel] = Panel.PROCESS

    parent_pid: int | None = Field(None, description="Process whose death ends this one.")
    runtime_dir: Path | None = Field(None, description="Folder of that process, removed if it has died.")
    status_fd: int | None = Field(None, description="Descriptor for one JSON line per status change.")
    progress_fd: int | None = Field(None, description="Descriptor of a page in which the process counts.")


class ListenOptions(Settings):
    """Where other processes of ours connect."""

    panel: ClassVar[Panel] = Panel.PROCESS

    listen: str = Field(description="Address to serve, such as unix:/run/quire/a.sock or host:port.")


class ExecutorSettings(
    ModelOptions,
    PrecisionOptions,
    ComputeOptions,
    GraphOptions,
    StepOptions,
    BlockOptions,
    SandboxOptions,
    ListenOptions,
    ProcessOptions,
):
    """`quire executor`."""

    panel: ClassVar[Panel] = Panel.PROCESS

    weight_store: Path | None = Field(
        None, description="Socket of a supervisor that keeps packed weights for all executors of its host."
    )
    device_pool: Path | None = Field(
        None, description="Socket of `quire device-pool`, which holds a GPU's KV pool for the next executor."
    )
    index: int = Field(0, ge=0, description="Number of this executor, for its name.")


class DevicePoolSettings(ProcessOptions):
    """`quire device-pool`."""

    panel: ClassVar[Panel] = Panel.PROCESS

    address: Path = Field(description="Path of the socket at which executors ask for device memory.")
    listener_fd: int | None = Field(None, description="Descriptor of that socket, where it listens already.")


class SchedulerSettings(
    CacheOptions, SchedulingOptions, StatisticsOptions, TraceOptions, ListenOptions, ProcessOptions
):
    """`quire scheduler`."""

    panel: ClassVar[Panel] = Panel.PROCESS

    executors: list[str] = Field(min_length=1, description="Addresses of the executors (repeat the flag).")
    pool_store: Path | None = Field(
        None, description="Socket of a supervisor that keeps the KV pool for the next scheduler."
    )


class GatewayOptions(
    ServingOptions, AccessOptions, TlsOptions, EdgeOptions, ChatOptions, ObservationOptions, TraceOptions
):
    """What a gateway is told, be it alone or by `quire serve`."""


class GatewaySettings(GatewayOptions, ProcessOptions):
    """`quire gateway`."""

    panel: ClassVar[Panel] = Panel.PROCESS

    scheduler: str = Field(description="Address of the scheduler.")
    index: int = Field(0, ge=0, description="Number of this gateway, for its name.")
    reuse_port: bool = Field(False, description="Share the ports with other gateways that do (SO_REUSEPORT).")


class LocalSettings(
    ModelOptions,
    PrecisionOptions,
    ComputeOptions,
    GraphOptions,
    SandboxOptions,
    CacheOptions,
    SchedulingOptions,
    OperationOptions,
    StatisticsOptions,
):
    """A scheduler and its executors on this host, as `LLM` starts them."""

    panel: ClassVar[Panel] = Panel.EXECUTORS

    num_executors: int = Field(1, ge=1, le=64, description="Executor processes on one KV pool.")


class ServeSettings(LocalSettings, GatewayOptions):
    """`quire serve`: everything on this host."""

    panel: ClassVar[Panel] = Panel.API

    gateways: int = Field(1, ge=1, le=64, description="Gateway processes, which share the ports.")

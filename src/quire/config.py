"""All settings, with their defaults, once.

A setting comes from, in falling precedence: a flag, a `QUIRE_*` variable, the YAML file of `--config`, the
default written here. The groups below are mixed into one settings class per process; `flags()` passes a
process's share of `quire serve`'s settings on to it. Settings are frozen: what is computed from them (how many
blocks fit) is a result and lives elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from quire.errors import StartupError

BUNDLED_MODEL = Path(__file__).parent / "bundled" / "quire-tiny"


def _split_texts(value: object) -> object:
    """A list of texts as flags, variables and files give it: repeated, with commas between, or as JSON."""
    if isinstance(value, list):
        return [text for entry in value for text in _split_text(entry)]
    return _split_text(value)


def _split_text(value: object) -> list[object]:
    if not isinstance(value, str):
        return [value]
    return list(json.loads(value)) if value.startswith("[") else [*value.split(",")]


def _check_texts(texts: list[str]) -> list[str]:
    if not all(text and text.isprintable() and text == text.strip() for text in texts):
        raise ValueError("must not be empty, nor begin or end with a space")
    return texts


# A setting with several values.
Texts = Annotated[list[str], NoDecode, BeforeValidator(_split_texts), AfterValidator(_check_texts)]


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="QUIRE_",
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        # A process uses one of these classes and would spend 0.15 s of its start on the others.
        defer_build=True,
    )

    @classmethod
    def load(cls, given: Mapping[str, Any], config_file: Path | None = None) -> Self:
        """Settings from `given` (flags), the environment and a YAML file. Raises StartupError."""

        class Loader(cls):  # type: ignore[valid-type, misc]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return init_settings, env_settings, InitSettingsSource(settings_cls, from_file)

        from_file = {} if config_file is None else _read_file(config_file)
        try:
            loaded = Loader(**given)
        except ValidationError as error:
            raise StartupError(_explain(error), field=_flag_names(error)[0]) from error
        return cls.model_construct(**{name: getattr(loaded, name) for name in cls.model_fields})


class ModelOptions(_Settings):
    """Which model is served."""

    model: str = Field(
        str(BUNDLED_MODEL), description="Folder or hub id of a Hugging Face checkpoint; default: the bundled model."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")


class PrecisionOptions(_Settings):
    """How the model is held and computed."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of weights and arithmetic; auto: the checkpoint's."
    )
    quantization: Literal["int8", "int8_weight_only", "int4"] | None = Field(
        None, description="Quantise the weights while loading; int8: activations too, int4: in groups of 32."
    )
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto", description="Type of the KV cache; auto: that of --dtype. int8 has a scale for each token and head."
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Longest prompt plus output, in tokens; default: the model's context."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one, else cpu.")
    isa: Literal["auto", "amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2", "portable"] = Field(
        "auto", description="Instruction set of the kernels on the CPU; auto: the best that the machine has."
    )
    threads: int | None = Field(
        None, ge=1, description="Compute threads of an executor on the CPU; default: the usable cores."
    )


Sandbox: TypeAlias = Literal["auto", "require", "off"]


class SandboxOptions(_Settings):
    """What executors may do besides computing."""

    sandbox: Sandbox = Field(
        "auto",
        description="Executors give up the network and changing files once they serve; auto: on a CPU, where the "
        "kernel can; require: or they do not start.",
    )


class CacheOptions(_Settings):
    """The KV pool."""

    block_size: int = Field(16, ge=1, le=1024, description="Tokens in a KV block.")
    kv_cache_memory: ByteSize | None = Field(
        None, description="Size of the KV pool, such as 2GiB; default: what the requests can use, within free memory."
    )
    kv_pool: Path | None = Field(
        None, description="File that holds the KV pool and outlives the server; default: anonymous memory."
    )
    enable_prefix_caching: bool = Field(True, description="Reuse KV blocks of equal prefixes.")


SchedulingPolicy: TypeAlias = Literal["fcfs", "priority", "fair"]
StepTransport: TypeAlias = Literal["auto", "ring", "grpc"]


class SchedulingOptions(_Settings):
    """What a step may hold, and how it travels."""

    max_num_seqs: int = Field(256, ge=1, description="Sequences that run at the same time.")
    max_num_batched_tokens: int = Field(
        512, ge=1, description="Token budget of a step; longer prompts are computed in chunks."
    )
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


class AccessOptions(_Settings):
    """Who may call, and from where."""

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


class TlsOptions(_Settings):
    """TLS for REST and gRPC."""

    ssl_certfile: Path | None = Field(None, description="Certificate chain of the server (PEM).")
    ssl_keyfile: Path | None = Field(None, description="Its private key (PEM).")
    ssl_ca_certs: Path | None = Field(None, description="Certificates that clients' ones must be signed by (PEM).")
    ssl_cert_reqs: Literal["none", "optional", "required"] = Field(
        "none", description="Whether clients must have a certificate; its common name is the tenant."
    )


class EdgeOptions(_Settings):
    """What a client's connection may take."""

    max_connections: int = Field(
        4096, ge=1, description="Connections that each gateway holds, on REST and on gRPC; one more is refused."
    )
    header_timeout: float = Field(20.0, gt=0, description="Seconds in which the headers of a request must arrive.")
    body_timeout: float = Field(
        30.0, gt=0, description="Seconds in which its body must arrive, and one more for each 16 KiB of it."
    )


ToolCallParser: TypeAlias = Literal["auto", "hermes", "llama3_json", "mistral", "none"]
ReasoningParser: TypeAlias = Literal["auto", "qwen3", "deepseek_r1", "mistral", "none"]


class ChatOptions(_Settings):
    """How the model's chats are read."""

    tool_call_parser: ToolCallParser = Field(
        "auto", description="How the model writes calls of tools; auto: as its chat template does."
    )
    enable_auto_tool_choice: bool = Field(True, description='Take tools with tool_choice "auto", the default.')
    reasoning_parser: ReasoningParser = Field(
        "auto", description="How the model marks its thoughts; auto: as its chat template does."
    )
    trust_request_chat_template: bool = Field(False, description="Take a chat_template in a request.")


class OperationOptions(_Settings):
    """Starting, stopping and logging."""

    startup_timeout: float = Field(600.0, gt=0, description="Seconds until a start that is not ready is given up.")
    shutdown_timeout: float = Field(
        15.0, ge=0, description="Seconds that running requests may take to end after SIGTERM."
    )
    watchdog_timeout: float = Field(
        20.0, gt=0, description="Seconds without any progress after which a process counts as hung and is replaced."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object each.")


class StatisticsOptions(_Settings):
    """Statistics."""

    disable_log_stats: bool = Field(
        False, description="Do not log throughput, requests and cache usage every ten seconds."
    )


class TraceOptions(_Settings):
    """Traces."""

    otlp_traces_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+/?$",
        description="Collector that gets a trace of each request (OTLP over gRPC), such as http://localhost:4317.",
    )


class ObservationOptions(_Settings):
    """What the server tells of itself."""

    metrics_alias: Literal["vllm"] | None = Field(
        None, description="Give each metric of /metrics a second time under vLLM's prefix, for boards made for vLLM."
    )
    enable_log_requests: bool = Field(True, description="Log a line for each request when it ends, with its timings.")
    log_prompts: bool = Field(False, description="Write prompts and outputs into these lines too.")
    max_log_len: int | None = Field(
        None, ge=0, description="Characters of a prompt or an output that are logged; default: all."
    )
    live_page: bool = Field(True, description="Serve the page at / with a playground and a view of the server.")


class InternalTlsOptions(_Settings):
    """TLS between processes on several hosts."""

    internal_tls_cert: Path | None = Field(None, description="Certificate that this process shows to others (PEM).")
    internal_tls_key: Path | None = Field(None, description="Its private key (PEM).")
    internal_tls_ca: Path | None = Field(None, description="Certificates that theirs must be signed by (PEM).")
    allow_insecure_internal: bool = Field(
        False, description="Talk to processes on other hosts without TLS; whoever reaches them can do everything."
    )


class ProcessOptions(OperationOptions, InternalTlsOptions):
    """How a single process is watched."""

    parent_pid: int | None = Field(None, description="Process whose death ends this one.")
    runtime_dir: Path | None = Field(None, description="Folder of that process, removed if it has died.")
    status_fd: int | None = Field(None, description="Descriptor for one JSON line per status change.")
    progress_fd: int | None = Field(None, description="Descriptor of a page in which the process counts.")


class ListenOptions(_Settings):
    """Where other processes of ours connect."""

    listen: str = Field(description="Address to serve, such as unix:/run/quire/a.sock or host:port.")


class ExecutorSettings(ModelOptions, PrecisionOptions, SandboxOptions, ListenOptions, ProcessOptions):
    """`quire executor`."""

    weight_store: Path | None = Field(
        None, description="Socket of a supervisor that keeps packed weights for all executors of its host."
    )
    index: int = Field(0, ge=0, description="Number of this executor, for its name.")


class SchedulerSettings(
    CacheOptions, SchedulingOptions, StatisticsOptions, TraceOptions, ListenOptions, ProcessOptions
):
    """`quire scheduler`."""

    executors: list[str] = Field(min_length=1, description="Addresses of the executors (repeat the flag).")
    pool_store: Path | None = Field(
        None, description="Socket of a supervisor that keeps the KV pool for the next scheduler."
    )


class GatewaySettings(
    ServingOptions,
    AccessOptions,
    TlsOptions,
    EdgeOptions,
    ChatOptions,
    ObservationOptions,
    TraceOptions,
    ProcessOptions,
):
    """`quire gateway`."""

    scheduler: str = Field(description="Address of the scheduler.")
    index: int = Field(0, ge=0, description="Number of this gateway, for its name.")
    reuse_port: bool = Field(False, description="Share the ports with other gateways that do (SO_REUSEPORT).")


class LocalSettings(ModelOptions, PrecisionOptions, SandboxOptions, CacheOptions, SchedulingOptions, OperationOptions):
    """A scheduler and its executors on this host, as `LLM` starts them."""

    num_executors: int = Field(1, ge=1, le=64, description="Executor processes on one KV pool.")


class ServeSettings(
    LocalSettings,
    ServingOptions,
    AccessOptions,
    TlsOptions,
    EdgeOptions,
    ChatOptions,
    ObservationOptions,
    StatisticsOptions,
    TraceOptions,
):
    """`quire serve`: everything on this host."""

    gateways: int = Field(1, ge=1, le=64, description="Gateway processes, which share the ports.")


# Command lines are for everyone to see.
_SECRETS = frozenset({"api_key"})


def secret_variables(settings: _Settings, process: type[_Settings]) -> dict[str, str]:
    """The environment that gives a process its share of what `flags` leaves out."""
    names = _SECRETS & process.model_fields.keys() & type(settings).model_fields.keys()
    return {f"QUIRE_{name.upper()}": ",".join(value) for name in names if (value := getattr(settings, name))}


def flags(settings: _Settings, process: type[_Settings], **own: object) -> list[str]:
    """The command line that gives a process its share of `settings`, but for secrets, and its `own` settings."""
    names = (process.model_fields.keys() & type(settings).model_fields.keys()) - _SECRETS
    shared = {name: getattr(settings, name) for name in process.model_fields if name in names}
    line: list[str] = []
    for name, value in {**shared, **own}.items():
        flag = "--" + name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            line.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, list):
            line += [part for entry in value for part in (flag, str(entry))]
        else:
            line += [flag, str(int(value)) if isinstance(value, ByteSize) else str(value)]
    return line


def _read_file(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, spelled as the flags or with underscores. Raises StartupError."""
    if not path.is_file():
        raise StartupError(f"--config: no such file: {path}", field="config")
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StartupError(f"--config: {path} is not valid YAML: {error}", field="config") from error
    if not isinstance(content, dict):
        raise StartupError(f"--config: {path} holds no settings by name", field="config")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _flag_names(error: ValidationError) -> list[str]:
    return [str(problem["loc"][0]) if problem["loc"] else "" for problem in error.errors()]


def _explain(error: ValidationError) -> str:
    problems = (
        f"--{name.replace('_', '-')}: {problem['msg']}"
        for name, problem in zip(_flag_names(error), error.errors(), strict=True)
    )
    return "; ".join(problems)

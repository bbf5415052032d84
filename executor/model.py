"""One model, loaded: configuration, weights, and what tells its KV from that of others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from quire import kernels
from quire.config import ExecutorSettings
from quire.errors import CheckpointError, StartupError
from quire.executor.checkpoint import Checkpoint, locate_checkpoint
from quire.executor.decoder import Decoder
from quire.executor.model_config import ModelConfig, load_model_config
from quire.executor.native_decoder import NativeDecoder
from quire.executor.packed_weights import obtain
from quire.executor.weight_layout import WeightFormats, WeightLayout
from quire.executor.weights import load_weights
from quire.kv_layout import CacheGroupLayout

logger = logging.getLogger(__name__)

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

KV_CACHE_DTYPES: Final = {
    **DTYPES,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
}

# What the native kernels store and read.
_CPU_KV_CACHE_DTYPES: Final = (torch.float32, torch.bfloat16, torch.int8)

# Compute capability from which on GPUs convert to FP8 (e4m3); Triton compiles no such conversion for older ones.
_FP8_CACHE_CAPABILITY: Final = (8, 9)

# Changes with the order of elements within a block.
_KV_FORMAT: Final = "layer, keys then values then scales, kv_heads, block_size, head_dim"
_SCALE_BYTES: Final = 4

# Compute capability from which on products of FP8 weights are computed: Hopper's.
_FP8_WEIGHTS_CAPABILITY: Final = (9, 0)


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder with its weights on its device."""

    name: str
    # Of the checkpoint.
    folder: Path
    decoder: Decoder | NativeDecoder
    dtype: torch.dtype
    kv_cache_dtype: torch.dtype
    device: torch.device
    max_model_len: int
    # 32 bytes: KV of one fingerprint means nothing under another.
    fingerprint: bytes

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def cache_group(self) -> CacheGroupLayout:
        dtype = self.kv_cache_dtype
        return self.config.cache_group(dtype.itemsize, _SCALE_BYTES if dtype in kernels.SCALED_DTYPES else 0)


def load_model(settings: ExecutorSettings, open_checkpoint: Callable[[Path], Checkpoint] = Checkpoint) -> Model:
    """Finds, reads and places a checkpoint. Raises StartupError (CheckpointError for its files)."""
    device = choose_device(settings.device)
    folder = locate_checkpoint(settings.model, settings.revision)
    config = load_model_config(folder)
    max_model_len = _max_model_len(settings.max_model_len, config)
    dtype = _dtype(settings.dtype, config, device)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    kv_cache_dtype = choose_kv_cache_dtype(settings.kv_cache_dtype, dtype, device, capability)
    formats = _formats(settings.quantization, dtype, device)
    checkpoint = open_checkpoint(folder)
    try:
        if formats is None:
            weights_digest = hashlib.sha256()
            fp8 = settings.quantization == "fp8"
            weights = load_weights(checkpoint, config, dtype, device, weights_digest, fp8=fp8)
            decoder: Decoder | NativeDecoder = Decoder(config, weights, max_model_len)
            content = weights_digest.digest()
        else:
            packed, content = obtain(checkpoint, WeightLayout(config, formats), dtype, settings)
            decoder = NativeDecoder(packed)
    except torch.OutOfMemoryError as error:
        raise StartupError(f"the weights do not fit the memory of {device}", field="model") from error
    finally:
        checkpoint.close()
    identity = _identity(config, dtype, kv_cache_dtype, formats or settings.quantization, device)
    fingerprint = hashlib.sha256(identity.encode() + content).digest()
    return Model(settings.model, folder, decoder, dtype, kv_cache_dtype, device, max_model_len, fingerprint)


def _formats(quantization: str | None, dtype: torch.dtype, device: torch.device) -> WeightFormats | None:
    """What weights are packed as; None where they are not: on GPUs. Raises StartupError."""
    if kernels.implementation_for(device) == "native":
        if quantization == "fp8":
            raise StartupError(
                "--quantization fp8 is supported on GPUs only; on a CPU: int8, int8_weight_only or int4",
                field="quantization",
            )
        return WeightFormats.choose(dtype, quantization)
    if quantization == "fp8":
        _check_fp8(device)
    elif quantization is not None:
        raise StartupError(
            f"--quantization {quantization} is supported on the CPU only; on GPUs: fp8", field="quantization"
        )
    return None


def _check_fp8(device: torch.device) -> None:
    """Raises StartupError for a GPU that does not multiply in FP8."""
    if device.type != "cuda":
        return
    if kernels.implementation_for(device) != "triton":
        raise StartupError("--quantization fp8 needs Triton, which is not installed", field="quantization")
    found = torch.cuda.get_device_capability(device)
    if found < _FP8_WEIGHTS_CAPABILITY:
        raise StartupError(
            "--quantization fp8 needs a GPU of compute capability 9.0 or more (Hopper and later), not "
            f"{found[0]}.{found[1]}",
            field="quantization",
        )


def choose_device(name: str) -> torch.device:
    """The device of --device. Raises StartupError where it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise StartupError("--device cuda: there is no usable CUDA device", field="device")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    chosen = name
    if name == "auto":
        chosen = config.dtype or "float32"
        if chosen not in DTYPES:
            raise CheckpointError(f"the checkpoint's type {chosen} is not supported; choose a --dtype", field="dtype")
    if chosen == "float16" and device.type == "cpu":
        if name != "auto":
            raise StartupError("--dtype float16 is supported on cuda only", field="dtype")
        logger.warning("the checkpoint is float16, which the CPU computes in float32; --dtype bfloat16 takes half")
        chosen = "float32"
    return DTYPES[chosen]


def choose_kv_cache_dtype(
    name: str, dtype: torch.dtype, device: torch.device, capability: tuple[int, int] | None = None
) -> torch.dtype:
    """The cache's type from --kv-cache-dtype and the model's type. Raises StartupError for what the device cannot do.

    Args:
        name: auto, or one of KV_CACHE_DTYPES.
        dtype: the model's.
        device: the model's.
        capability: compute capability, on CUDA.
    """
    chosen = dtype if name == "auto" else KV_CACHE_DTYPES[name]
    if device.type == "cpu" and chosen not in _CPU_KV_CACHE_DTYPES:
        raise StartupError(
            f"--kv-cache-dtype {name} is supported on cuda only; on a CPU, int8 takes as little", field="kv_cache_dtype"
        )
    if chosen == torch.float8_e4m3fn and capability is not None and capability < _FP8_CACHE_CAPABILITY:
        raise StartupError(
            f"--kv-cache-dtype {name} needs a GPU of compute capability 8.9 or more (Ada, Hopper and later), not "
            f"{capability[0]}.{capability[1]}; int8 takes as little",
            field="kv_cache_dtype",
        )
    return chosen


def _max_model_len(wanted: int | None, config: ModelConfig) -> int:
    if wanted is not None and wanted > config.max_model_len:
        raise StartupError(
            f"--max-model-len {wanted} is more than the model's context of {config.max_model_len} tokens",
            field="max_model_len",
        )
    return wanted or config.max_model_len


def _identity(
    config: ModelConfig,
    dtype: torch.dtype,
    kv_cache_dtype: torch.dtype,
    formats: WeightFormats | str | None,
    device: torch.device,
) -> str:
    """What decides the bits of a token's KV, besides the weights."""
    shape = json.dumps(dataclasses.asdict(config), sort_keys=True, default=str)
    if device.type == "cpu":
        isa = kernels.current_isa()
    else:
        isa = f"{torch.cuda.get_device_name(device)} {'' if kernels.batch_invariant() else 'not '}batch-invariant"
    return f"{shape}\n{dtype} {kv_cache_dtype} {formats} {_KV_FORMAT} {kernels.NUMERICS_VERSION} {device.type} {isa}\n"

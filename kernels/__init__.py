"""Operators of the forward pass: paged attention, the KV cache's writes, and the small ones around them.

    metadata.py         AttentionMetadata: which token belongs to which sequence, and where its KV lies
    attention_work.py   on GPUs: what each program of attention does, planned on the host
    attention.py        paged_attention, store_kv: checks, then the implementation of the tensors' device
    rotary_store.py     rotate_and_store: norms, rotation and the cache's write in one pass
    cache.py            a layer's keys or values: a tensor, or int8 or FP8 with scales
    blocks.py           copy_blocks: copy on write
    linear.py packed_weight.py fp8_weight.py
                        linear: the product with a matrix: plain, in FP8, or packed once at load in five formats
    norm.py rotary.py activation.py
                        the model's other operators; on a CPU they are part of the native step
    sampling.py sampling_batch.py philox.py
                        sample: logits → tokens and logprobs, its columns, its random numbers
    device_sampling.py  what sampling copies to a device and back
    last_tokens.py      take_last_tokens: ids that only the device knows yet
    logprobs.py         score_tokens: logits → logprobs of given tokens
    backend.py          which implementation runs; numeric identity
    reference.py        plain torch, what everything else is tested against
    torch_paged.py      torch, streaming over the block table: GPUs, and any device without a native kernel
    torch_sampling.py   torch: GPUs without Triton, and the reference
    native_library.py   finds and declares libquire_kernels.so; threads and instruction sets
    native_attention.py native_blocks.py native_linear.py native_sampling.py native_signal.py native_step.py
                        the calls into it; the last computes a whole step
    native/             its C++ source, behind a C ABI

This package imports nothing else of Quire's, so that a kernel can be tested and measured alone.
"""

from .activation import silu_and_mul
from .attention import paged_attention, store_kv
from .attention_work import AttentionWork, PlannedWork, WorkCapacity, WorkShape, work_shape
from .backend import (
    NUMERICS_VERSION,
    Implementation,
    batch_invariant,
    implementation_for,
    set_batch_invariant,
    set_implementation,
)
from .blocks import copy_blocks
from .cache import SCALED_DTYPES, Cache, QuantizedCache
from .device_sampling import DeviceSampledTokens, Stage, stage_and_wait
from .fp8_weight import FP8, Fp8Weight
from .last_tokens import take_last_tokens
from .linear import linear
from .logprobs import TokenScores, score_tokens
from .metadata import AttentionMetadata
from .native_library import (
    ISAS,
    NativeLibraryError,
    available_isas,
    current_isa,
    get_num_threads,
    set_isa,
    set_num_threads,
)
from .norm import fused_add_rms_norm, rms_norm
from .packed_weight import PACKED_FORMATS, PackedFormat, PackedWeight, pack_weight, packed_bytes
from .rotary import rotary_embedding
from .rotary_store import rotate_and_store
from .sampling import sample, sample_on_device
from .sampling_batch import SAMPLING_ROW, SampledTokens, SamplingBatch

__all__ = [
    "FP8",
    "ISAS",
    "NUMERICS_VERSION",
    "PACKED_FORMATS",
    "SAMPLING_ROW",
    "SCALED_DTYPES",
    "AttentionMetadata",
    "AttentionWork",
    "Cache",
    "DeviceSampledTokens",
    "Fp8Weight",
    "Implementation",
    "NativeLibraryError",
    "PackedFormat",
    "PackedWeight",
    "PlannedWork",
    "QuantizedCache",
    "SampledTokens",
    "SamplingBatch",
    "Stage",
    "TokenScores",
    "WorkCapacity",
    "WorkShape",
    "available_isas",
    "batch_invariant",
    "copy_blocks",
    "current_isa",
    "fused_add_rms_norm",
    "get_num_threads",
    "implementation_for",
    "linear",
    "pack_weight",
    "packed_bytes",
    "paged_attention",
    "rms_norm",
    "rotary_embedding",
    "rotate_and_store",
    "sample",
    "sample_on_device",
    "score_tokens",
    "set_batch_invariant",
    "set_implementation",
    "set_isa",
    "set_num_threads",
    "silu_and_mul",
    "stage_and_wait",
    "store_kv",
    "take_last_tokens",
    "work_shape",
]

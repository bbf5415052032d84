"""Rotary position embedding (RoFormer, arXiv:2104.09864) and its length scalings.

Angles are computed from positions in float32, with transformers' operations in their order, so that results agree to
the last bits.

    default   θ_i = base^(-2i/d)
    linear    position interpolation (arXiv:2306.15595): θ_i / factor
    dynamic   NTK-aware: the base grows with the sequence's length
    llama3    long waves divided by the factor, short ones kept, smooth in between
    yarn      the same idea with a linear ramp over dimensions, and cos and sin scaled (arXiv:2309.00071)
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A table on a device that takes more is not made: its angles are computed anew in each step, to the same bits on a GPU.
# 128 MiB are 262,144 positions of heads of 128.
_MAX_TABLE_BYTES: Final = 128 << 20
# Positions by which a table of cos and sin grows.
_TABLE_STEP: Final = 2048


class RotaryType(enum.Enum):
    """Names as in config.json's `rope_type`."""

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True, slots=True)
class RotaryConfig:
    """Parameters of the embedding; those that its type does not use keep their defaults."""

    type: RotaryType = RotaryType.DEFAULT
    base: float = 10_000.0
    factor: float = 1.0
    # Positions the model was trained on before it was stretched.
    original_max_position_embeddings: int = 0
    # llama3
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    # yarn
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True

    @property
    def length_independent_tokens(self) -> int | None:
        """Prompts longer than this have angles that depend on their length; None if there are none."""
        return self.original_max_position_embeddings if self.type is RotaryType.DYNAMIC else None

    @property
    def amplitude(self) -> float:
        """Factor of cos and sin (yarn's attention temperature, section 3.4 of the paper)."""
        if self.type is not RotaryType.YARN:
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _yarn_mscale(self.factor, self.mscale) / _yarn_mscale(self.factor, self.mscale_all_dim)
        return _yarn_mscale(self.factor, 1.0)


class RotaryEmbedding:
    """Angles of tokens.

    For dynamic NTK, transformers takes the length of the whole prompt while it computes the prompt, and the
    length so far for each token after it. Here that is a pure function of prompt length and position, so
    chunks and recomputation give the same angles.
    """

    def __init__(self, config: RotaryConfig, head_dim: int, device: torch.device) -> None:
        self._config = config
        self._amplitude = config.amplitude
        # 2i/d for each pair of dimensions: float32 [head_dim / 2].
        self._exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
        self._inverse_frequencies = _inverse_frequencies(config, self._exponents, head_dim).to(device)
        self._exponents = self._exponents.to(device)
        self._ntk_power = head_dim / (head_dim - 2) if head_dim > 2 else 0.0
        self._table: tuple[Tensor, Tensor] | None = None

    @property
    def needs_lengths(self) -> bool:
        """Whether `cos_sin` wants `lengths`."""
        return self._config.type is RotaryType.DYNAMIC

    def cos_sin(self, positions: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cos and sin of every pair's angle, each float32 [num_tokens, head_dim / 2], contiguous.

        Args:
            positions: integers [num_tokens]; after `tabulate`, below its number.
            lengths: integers [num_tokens], only for dynamic NTK: the prompt's length for its tokens, and
                position + 1 for those after it.
        """
        if self._table is not None:
            cos, sin = self._table
            return cos.index_select(0, positions), sin.index_select(0, positions)
        frequencies = self._inverse_frequencies
        if self.needs_lengths:
            assert lengths is not None
            frequencies = self._dynamic_frequencies(lengths)
        angles = positions.to(torch.float32)[:, None] * frequencies
        return angles.cos() * self._amplitude, angles.sin() * self._amplitude

    def tabulate(self, num_positions: int) -> None:
        """Has `cos_sin` look up angles of positions 0 to num_positions - 1, where those decide them and memory allows.

        A step then has two operations here instead of six.
        """
        if not self.needs_lengths and 2 * num_positions * self._inverse_frequencies.nbytes <= _MAX_TABLE_BYTES:
            self._table = self.cos_sin(torch.arange(num_positions, device=self._inverse_frequencies.device))

    def _dynamic_frequencies(self, lengths: Tensor) -> Tensor:
        """float32 [num_tokens, head_dim / 2]."""
        config = self._config
        original = config.original_max_position_embeddings
        stretch = config.factor * lengths.clamp(min=original) / original - (config.factor - 1)
        # Tensor to the power of tensor: unlike scalar bases, bit-equal for any number of tokens.
        base = config.base * torch.pow(stretch, torch.full_like(stretch, self._ntk_power))
        grown = 1.0 / torch.pow(base[:, None], self._exponents)
        # Within the original context exactly the unscaled angles, whatever `stretch` was rounded to.
        return torch.where(lengths[:, None] > original, grown, self._inverse_frequencies)


class RotaryTable:
    """`RotaryEmbedding.cos_sin` for arrays, looked up: a few microseconds where the operators take a hundred.

    The table grows with the positions asked for, always by the same pieces, so that its bits do not depend on who asked
    for what. For dynamic NTK angles depend on more than the position and are computed.
    """

    def __init__(self, config: RotaryConfig, head_dim: int) -> None:
        self._embedding = RotaryEmbedding(config, head_dim, torch.device("cpu"))
        self._cos = np.empty((0, head_dim // 2), np.float32)
        self._sin = self._cos

    @property
    def needs_lengths(self) -> bool:
        """Whether `cos_sin` wants `lengths`."""
        return self._embedding.needs_lengths

    def cos_sin(
        self, positions: NDArray[np.int32], lengths: NDArray[np.int32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cos and sin of every pair's angle, each float32 [num_tokens, head_dim / 2], contiguous.

        Args:
            positions: [num_tokens], at least one.
            lengths: [num_tokens], as for `RotaryEmbedding.cos_sin`.
        """
        if lengths is not None:
            cos, sin = self._embedding.cos_sin(torch.from_numpy(positions), torch.from_numpy(lengths))
            return cos.numpy(), sin.numpy()
        if (missing := int(np.maximum.reduce(positions)) + 1 - len(self._cos)) > 0:
            self._grow(-(-missing // _TABLE_STEP))
        return self._cos.take(positions, 0), self._sin.take(positions, 0)

    def _grow(self, pieces: int) -> None:
        known = len(self._cos)
        starts = range(known, known + pieces * _TABLE_STEP, _TABLE_STEP)
        new = [self._embedding.cos_sin(torch.arange(start, start + _TABLE_STEP)) for start in starts]
        self._cos = np.concatenate([self._cos, *(cos.numpy() for cos, _ in new)])
        self._sin = np.concatenate([self._sin, *(sin.numpy() for _, sin in new)])


def _inverse_frequencies(config: RotaryConfig, exponents: Tensor, head_dim: int) -> Tensor:
    """Radians per position: float32 [head_dim / 2]."""
    wide = config.base**exponents
    match config.type:
        case RotaryType.LINEAR:
            return 1.0 / wide / config.factor
        case RotaryType.LLAMA3:
            return _llama3(config, 1.0 / wide)
        case RotaryType.YARN:
            return _yarn(config, wide, head_dim)
        case RotaryType.DEFAULT | RotaryType.DYNAMIC:
            return 1.0 / wide


def _llama3(config: RotaryConfig, inverse: Tensor) -> Tensor:
    original, low, high = (
        config.original_max_position_embeddings,
        config.low_freq_factor,
        config.high_freq_factor,
    )
    wavelength = 2 * math.pi / inverse
    scaled = torch.where(wavelength > original / low, inverse / config.factor, inverse)
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / config.factor + smooth * scaled
    medium = (wavelength >= original / high) & (wavelength <= original / low)
    return torch.where(medium, blended, scaled)


def _yarn(config: RotaryConfig, wide: Tensor, head_dim: int) -> Tensor:
    low, high = (_yarn_dimension(config, head_dim, rotations) for rotations in (config.beta_fast, config.beta_slow))
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (config.factor * wide) * (1 - kept) + 1.0 / wide * kept


def _yarn_dimension(config: RotaryConfig, head_dim: int, rotations: float) -> float:
    """The dimension that turns `rotations` times over the original context."""
    turns = config.original_max_position_embeddings / (rotations * 2 * math.pi)
    return head_dim * math.log(turns) / (2 * math.log(config.base))


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

"""--quantization fp8: layers' matrices in FP8, on GPUs that multiply in it; on a CPU, the reference computes here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.checkpoints import make_checkpoint
from support.step_driver import load

from quire import kernels
from quire.errors import CheckpointError, StartupError
from quire.executor import model
from quire.executor.decoder import Decoder
from quire.kernels import FP8, Fp8Weight
from quire.kernels.cache import quantize


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1)


@pytest.fixture
def _torch() -> Iterator[None]:
    kernels.set_implementation("torch")
    yield
    kernels.set_implementation(None)


@pytest.mark.usefixtures("_torch")
def test_projections_are_quantised_and_the_rest_is_not(checkpoint: Path) -> None:
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    decoder, plain = load(checkpoint, quantization="fp8").decoder, load(checkpoint).decoder
    assert isinstance(decoder, Decoder)
    layer = decoder.weights.layers[0]
    joined = torch.cat([tensors[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv"])
    data, scales = quantize(joined, FP8)
    assert isinstance(layer.qkv, Fp8Weight)
    assert torch.equal(layer.qkv.data.float(), data.float())
    assert torch.equal(layer.qkv.scales, scales)
    matrices = [layer.qkv, layer.output, layer.gate_up, layer.down]
    assert all(isinstance(matrix, Fp8Weight) for matrix in matrices)
    assert decoder.weights.head.dtype == decoder.weights.embedding.dtype == torch.float32
    elements = sum(matrix.data.numel() for matrix in matrices)
    outputs = sum(len(matrix.data) for matrix in matrices)
    assert plain.num_bytes - decoder.num_bytes == 4 * elements - (elements + 4 * outputs)


@pytest.mark.usefixtures("_torch")
def test_its_kv_is_not_taken_for_another_precisions(checkpoint: Path) -> None:
    assert load(checkpoint, quantization="fp8").fingerprint != load(checkpoint).fingerprint


@pytest.mark.usefixtures("_torch")
def test_weights_without_a_scale_are_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = torch.inf
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"0\.mlp\.up_proj\.weight: weights are not finite"):
        load(checkpoint, quantization="fp8")


def test_a_cpu_has_other_formats(checkpoint: Path) -> None:
    with pytest.raises(StartupError, match="on a CPU: int8, int8_weight_only or int4") as caught:
        load(checkpoint, quantization="fp8")
    assert caught.value.field == "quantization"


def refused(monkeypatch: pytest.MonkeyPatch, quantization: str, capability: tuple[int, int], triton: bool) -> str:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(kernels, "implementation_for", lambda _: "triton" if triton else "torch")
    with pytest.raises(StartupError) as caught:
        model._formats(quantization, torch.bfloat16, torch.device("cuda"))
    assert caught.value.field == "quantization"
    return str(caught.value)


def test_gpus_that_cannot_are_told_early(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "9.0 or more (Hopper and later), not 8.9" in refused(monkeypatch, "fp8", (8, 9), True)
    assert "needs Triton" in refused(monkeypatch, "fp8", (9, 0), False)
    assert "on GPUs: fp8" in refused(monkeypatch, "int8", (9, 0), True)


def test_hopper_holds_them_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(kernels, "implementation_for", lambda _: "triton")
    assert model._formats("fp8", torch.bfloat16, torch.device("cuda")) is None

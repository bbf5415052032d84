"""Checkpoints on disk: what loads, and how damage is reported."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.checkpoints import edit_config, make_checkpoint
from support.step_driver import load

from quire.errors import CheckpointError, StartupError
from quire.executor.checkpoint import locate_checkpoint
from quire.executor.native_decoder import NativeDecoder
from quire.weight_store import WeightStore


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = make_checkpoint(tmp_path / "sharded", "llama", num_hidden_layers=1, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards_hold_the_same_model_as_one_file(checkpoint: Path, sharded: Path) -> None:
    assert load(checkpoint).fingerprint == load(sharded).fingerprint


def test_joined_projections_hold_the_checkpoints_rows(checkpoint: Path) -> None:
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    decoder = load(checkpoint).decoder
    assert isinstance(decoder, NativeDecoder)
    names = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    joined = torch.cat([tensors[name] for name in names])
    assert torch.equal(decoder.weights.matrix("0.qkv").dequantise(), joined)


def test_weights_are_packed_once_for_all_executors_of_a_host(checkpoint: Path, tmp_path: Path) -> None:
    def decoder(**settings: str) -> NativeDecoder:
        chosen = load(checkpoint, weight_store=str(store.address), **settings).decoder
        assert isinstance(chosen, NativeDecoder)
        return chosen

    with closing(WeightStore(tmp_path / "weights.sock")) as store:
        alone, first = load(checkpoint), load(checkpoint, weight_store=str(store.address))
        assert alone.fingerprint == first.fingerprint
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("quire.executor.packed_weights.pack_checkpoint", None)
            again = load(checkpoint, weight_store=str(store.address))
            assert again.fingerprint == first.fingerprint
            assert isinstance(again.decoder, NativeDecoder) and isinstance(first.decoder, NativeDecoder)
            assert torch.equal(again.decoder.weights.memory, first.decoder.weights.memory)
            # Another precision, or a file that has changed, is packed anew.
            for settings in ({"dtype": "bfloat16"}, {"quantization": "int8"}):
                with pytest.raises(TypeError):
                    decoder(**settings)
            (checkpoint / "model.safetensors").touch()
            with pytest.raises(TypeError):
                decoder()
        decoder()


def test_gate_and_up_take_turns(checkpoint: Path) -> None:
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    decoder = load(checkpoint).decoder
    assert isinstance(decoder, NativeDecoder)
    turns = decoder.weights.matrix("0.gate_up").dequantise().view(-1, 2, 16, 64)
    for part, name in enumerate(("gate", "up")):
        expected = tensors[f"model.layers.0.mlp.{name}_proj.weight"]
        assert torch.equal(turns[:, part].reshape(-1, 64), expected)


def test_weight_bytes_count_tied_weights_once(checkpoint: Path, tmp_path: Path) -> None:
    tied = load(make_checkpoint(tmp_path / "tied", "llama", num_hidden_layers=1, tie_word_embeddings=True))
    untied = load(checkpoint)
    head = 320 * 64 * 4
    assert untied.decoder.num_bytes == tied.decoder.num_bytes + head
    size = (checkpoint / "model.safetensors").stat().st_size
    assert size - 4096 < untied.decoder.num_bytes < size


@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("int8_weight_only", 8), ("int4", 4.5)])
def test_quantised_matrices_take_their_bits(tmp_path: Path, quantization: str, bits: float) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 320}
    folder = make_checkpoint(tmp_path, "llama", dtype=torch.bfloat16, **sizes)
    decoder = load(folder, quantization=quantization).decoder
    assert isinstance(decoder, NativeDecoder)
    matrix = decoder.weights.matrix("0.down")
    # int8 has a scale and a sum of four bytes for each output besides.
    each = 0 if quantization == "int4" else 8
    assert matrix.data.numel() == 256 * (1024 * bits / 8 + each)


@pytest.mark.parametrize(
    ("saved", "wanted", "expected"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float16, "auto", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
    ],
)
def test_dtype(tmp_path: Path, saved: torch.dtype, wanted: str, expected: torch.dtype) -> None:
    folder = make_checkpoint(tmp_path, "llama", num_hidden_layers=1, dtype=saved)
    model = load(folder, dtype=wanted)
    assert isinstance(model.decoder, NativeDecoder)
    assert model.dtype == expected
    assert model.decoder.weights.matrix("head").format == str(expected).removeprefix("torch.")


def test_float16_is_for_gpus(checkpoint: Path) -> None:
    with pytest.raises(StartupError, match="--dtype float16"):
        load(checkpoint, dtype="float16")


def test_max_model_len(checkpoint: Path) -> None:
    assert load(checkpoint).max_model_len == 512
    assert load(checkpoint, max_model_len=100).max_model_len == 100
    with pytest.raises(StartupError, match="--max-model-len 513") as caught:
        load(checkpoint, max_model_len=513)
    assert caught.value.field == "max_model_len"


def test_fingerprints_tell_contents_types_and_configurations_apart(checkpoint: Path, tmp_path: Path) -> None:
    base = load(checkpoint).fingerprint
    assert len(base) == 32
    assert load(checkpoint).fingerprint == base
    assert load(checkpoint, dtype="bfloat16").fingerprint != base
    assert load(checkpoint, kv_cache_dtype="int8").fingerprint != base
    quantised = {load(checkpoint, quantization=name).fingerprint for name in ("int8", "int8_weight_only", "int4")}
    assert len(quantised | {base}) == 4
    assert load(checkpoint, kv_cache_dtype="float32").fingerprint == base, "what auto chooses"
    other = make_checkpoint(tmp_path / "other", "llama", num_hidden_layers=1, seed=1)
    assert load(other).fingerprint != base
    edit_config(checkpoint, rms_norm_eps=1e-5)
    assert load(checkpoint).fingerprint != base


@pytest.mark.parametrize("size", [0, 7, 100, 100_000])
def test_a_truncated_file_is_named(checkpoint: Path, size: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=f"{path} is damaged or truncated"):
        load(checkpoint)


def test_a_file_of_noise_is_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(b"\xff" * 1000)
    with pytest.raises(CheckpointError, match=str(path)):
        load(checkpoint)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    missing = sorted(sharded.glob("model-*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(CheckpointError, match=str(missing)):
        load(sharded)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../a"}}'])
def test_a_bad_index_is_named(sharded: Path, content: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(CheckpointError, match=str(index)):
        load(sharded)


def test_a_tensor_missing_from_the_index_is_named(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    del values["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"has no tensor model\.norm\.weight"):
        load(sharded)


def _rewrite(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    safetensors.torch.save_file(tensors, path)


def test_a_missing_tensor_is_named(checkpoint: Path) -> None:
    _rewrite(checkpoint, "lm_head.weight", None)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has no tensor lm_head\.weight"):
        load(checkpoint)


def test_a_tensor_of_another_shape_is_named(checkpoint: Path) -> None:
    _rewrite(checkpoint, "model.norm.weight", torch.ones(65))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[65\], config.json says \[64\]"):
        load(checkpoint)


def test_a_tensor_of_another_type_is_named(checkpoint: Path) -> None:
    _rewrite(checkpoint, "model.norm.weight", torch.ones(64, dtype=torch.int32))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has type torch.int32"):
        load(checkpoint)


def test_a_folder_without_weights_is_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=str(checkpoint)):
        load(checkpoint)


@pytest.mark.parametrize("name", ["./not-there", "/not/there", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"there is no folder {name}"):
        locate_checkpoint(name, None)


def test_a_file_is_no_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file"):
        locate_checkpoint(str(checkpoint / "model.safetensors"), None)


def test_a_hub_id_that_cannot_be_fetched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/nothing is no local folder and cannot be fetched"):
        locate_checkpoint("nobody/nothing", None)

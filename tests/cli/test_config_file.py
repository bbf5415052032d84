"""--config and --print-config: where settings come from, and how that is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from quire.cli import app
from quire.config import BUNDLED_MODEL, ServeSettings
from quire.errors import StartupError


def quire(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def printed(*words: str) -> dict[str, tuple[object, str]]:
    """What --print-config says: by setting, the value and where it comes from."""
    result = quire("serve", "--print-config", *words)
    assert result.exit_code == 0, result.output
    values = yaml.safe_load(result.stdout)
    origins = dict(line.split(":", 1) for line in result.stdout.splitlines() if line and not line.startswith("#"))
    return {name: (value, origins[name].rsplit("  # ", 1)[1]) for name, value in values.items()}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """As one that was written for vLLM."""
    file = tmp_path / "vllm.yaml"
    file.write_text(
        "model: quire-tiny\n"
        "served-model-name: [tiny, small]\n"
        "port: 1\n"
        "max_num_seqs: 3\n"
        "max-model-len: 1k\n"
        "block-size: 4\n"
        "tensor-parallel-size: 1\n"
        "enforce-eager: true\n"
        "uvicorn-log-level: critical\n"
        "revision: null\n"
        "compilation-config:\n  mode: 3\n"
        "speculative-config:\n"
    )
    return file


def test_a_flag_a_variable_a_file_a_default(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_BLOCK_SIZE", "8")
    monkeypatch.setenv("QUIRE_PORT", "2")
    found = printed("--config", str(config), "--port", "9")
    assert found["port"] == (9, "--port")
    assert found["block-size"] == (8, "QUIRE_BLOCK_SIZE")
    assert found["max-num-seqs"] == (3, str(config))
    assert found["max-num-batched-tokens"] == (512, "default")
    assert found["served-model-name"] == (["tiny", "small"], str(config))
    assert found["max-model-len"] == (1000, str(config))
    assert found["log-level"] == ("error", str(config))
    assert found["revision"] == (None, "default")
    assert found.keys() == {name.replace("_", "-") for name in ServeSettings.model_fields}


def test_what_is_printed_is_a_file_of_its_own(config: Path, tmp_path: Path) -> None:
    flags = ("--kv-cache-memory", "1GiB", "--kv-pool", "pool", "--allowed-origins", "a,b")
    first = quire("serve", "--print-config", "--config", str(config), *flags).stdout
    again = tmp_path / "again.yaml"
    again.write_text(first)
    second = quire("serve", "--print-config", "--config", str(again)).stdout
    assert yaml.safe_load(first) == yaml.safe_load(second)
    assert yaml.safe_load(first)["kv-cache-memory"] == 2**30


def test_keys_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_API_KEY", "sesame")
    result = quire("serve", "--print-config")
    assert "sesame" not in result.output
    assert "# api-key: not shown  # QUIRE_API_KEY" in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("max-num-seq: 3", r"there is no setting --max-num-seq; did you mean --max-num-seqs"),
        ("tensor-parallel-size: 2", r"--tensor-parallel-size 2 is vLLM's"),
        ("port: 1\nPORT: 2", r"there is no setting --PORT"),
        ("max-num-seqs: 1\nmax_num_seqs: 2", r"gives a setting twice"),
        ("gateways: 2\napi-server-count: 3", r"give --gateways two values"),
        ("port: many", r"--port: "),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "quire.yaml"
    file.write_text(content)
    with pytest.raises(StartupError, match=said):
        app(["serve", "--print-config", "--config", str(file)], standalone_mode=False)


def test_other_commands_read_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "quire.yaml"
    file.write_text("num-prompts: 0\n")
    for command in (["bench", "serve"], ["bench", "throughput"]):
        with pytest.raises(StartupError, match="--num-prompts: "):
            app([*command, "--config", str(file)], standalone_mode=False)


def test_two_models_are_refused() -> None:
    with pytest.raises(StartupError, match="the model is a or --model b; name one"):
        app(["serve", "--print-config", "a", "--model", "b"], standalone_mode=False)
    assert printed("a", "--model", "a")["model"] == ("a", "--model")
    assert printed()["model"] == (str(BUNDLED_MODEL), "default")


def test_vllms_flags_on_the_command_line() -> None:
    words = "quire-tiny --max_model_len 1k -tp 1 --served-model-name a b --api-server-count=2 --swap-space 4 -q int8"
    words += " --preemption-mode swap"
    found = printed(*words.split())
    assert found["model"] == ("quire-tiny", "--model")
    assert found["max-model-len"] == (1000, "--max-model-len")
    assert found["served-model-name"] == (["a", "b"], "--served-model-name")
    assert found["gateways"] == (2, "--api-server-count")
    assert found["swap-space"] == (4.0, "--swap-space")
    assert found["quantization"] == ("int8", "--quantization")
    said = quire("serve", "--print-config", *words.split()).stderr
    assert said.splitlines() == [
        "quire serve: --api-server-count is --gateways 2",
        "quire serve: --preemption-mode changes nothing: "
        "Quire computes preempted requests again, out of the prefix cache and --swap-space",
    ]
    with pytest.raises(StartupError, match="--tensor-parallel-size 2 is vLLM's and cannot be served"):
        app(["serve", "-tp", "2"], standalone_mode=False)
    unknown = quire("serve", "--max-modl-len", "3")
    assert unknown.exit_code == 2
    assert "--max-model-len" in unknown.output

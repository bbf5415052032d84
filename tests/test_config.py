"""Settings: where they come from, and what a child process gets of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quire.cli import app
from quire.config import (
    BUNDLED_MODEL,
    ExecutorSettings,
    GatewaySettings,
    SchedulerSettings,
    ServeSettings,
)
from quire.errors import StartupError
from quire.settings import flags, secret_variables


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path, monkeypatch):
    file = tmp_path / "quire.yaml"
    file.write_text("max-num-seqs: 3\nblock_size: 4\nport: 1\n")
    monkeypatch.setenv("QUIRE_BLOCK_SIZE", "8")
    monkeypatch.setenv("QUIRE_PORT", "2")
    settings = ServeSettings.load({"port": 9}, file)
    assert (settings.port, settings.block_size, settings.max_num_seqs) == (9, 8, 3)
    assert settings.max_num_batched_tokens == ServeSettings.model_fields["max_num_batched_tokens"].default


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        ServeSettings.load({}).port = 1


@pytest.mark.parametrize("given", [{"port": -1}, {"port": 65536}, {"dtype": "int1"}, {"nonsense": 1}])
def test_a_wrong_setting_is_named_as_its_flag(given):
    (name,) = given
    with pytest.raises(StartupError, match=f"--{name}") as caught:
        ServeSettings.load(given)
    assert caught.value.field == name


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StartupError, match="no such file"):
        ServeSettings.load({}, tmp_path / "none.yaml")


@pytest.mark.parametrize("content", [b"a: [b", b"- a", b"\xff\xfe"])
def test_a_damaged_file_is_named(tmp_path, content):
    file = tmp_path / "quire.yaml"
    file.write_bytes(content)
    with pytest.raises(StartupError, match=r"quire\.yaml"):
        ServeSettings.load({}, file)


def test_a_child_gets_its_share():
    serve = ServeSettings.load({"kv_cache_memory": "1GiB", "enable_prefix_caching": False, "port": 1})
    line = flags(serve, SchedulerSettings, listen="unix:/a", executors=["unix:/b", "unix:/c"])
    assert line[line.index("--kv-cache-memory") + 1] == str(2**30)
    assert "--no-enable-prefix-caching" in line
    assert [line[i + 1] for i, part in enumerate(line) if part == "--executors"] == ["unix:/b", "unix:/c"]
    assert "--port" not in line
    assert "--kv-pool" not in line, "what is not set is not passed"
    assert "--port" in flags(serve, GatewaySettings, scheduler="unix:/a")
    assert "--dtype" in flags(serve, ExecutorSettings, listen="unix:/b")


def test_rest_and_grpc_cannot_share_a_port():
    with pytest.raises(StartupError, match=r"--grpc-port: .* must not be --port \(9000\)") as caught:
        ServeSettings.load({"port": 9000, "grpc_port": 9000})
    assert caught.value.field == "grpc_port"
    assert ServeSettings.load({"port": 0, "grpc_port": 0}).grpc_port == 0


def test_the_models_name():
    assert ServeSettings.load({}).model_name == "quire-tiny"
    assert ServeSettings.load({"model": "a/b"}).model_name == "a/b"
    assert ServeSettings.load({"model": "a/b", "served_model_name": "c"}).model_name == "c"
    assert BUNDLED_MODEL.is_dir()


@pytest.mark.parametrize("command", ["serve", "gateway", "scheduler", "executor", "chat", "complete"])
def test_every_command_has_help(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0


@pytest.mark.parametrize("given", [["a", "b"], "a,b", '["a", "b"]', ["a,b"]])
def test_several_values_in_every_spelling(given, tmp_path, monkeypatch):
    assert ServeSettings.load({"allowed_origins": given}).allowed_origins == ["a", "b"]
    if isinstance(given, str):
        monkeypatch.setenv("QUIRE_ALLOWED_ORIGINS", given)
        assert ServeSettings.load({}).allowed_origins == ["a", "b"]
    file = tmp_path / "quire.yaml"
    file.write_text(f"allowed-methods: {json.dumps(given)}")
    assert ServeSettings.load({}, file).allowed_methods == ["a", "b"]


@pytest.mark.parametrize("given", [[""], "", "a,", [" a"], "[1]", "[", '["\\n"]'])
def test_a_name_that_is_none_is_refused(given):
    with pytest.raises(StartupError, match="--served-model-name"):
        ServeSettings.load({"served_model_name": given})


def test_the_first_name_is_the_models():
    settings = ServeSettings.load({"served_model_name": ["c", "d"]})
    assert (settings.model_name, settings.model_names) == ("c", ["c", "d"])


@pytest.mark.parametrize("path", ["llm", "/llm/", "/"])
def test_a_root_path_that_is_none_is_refused(path):
    with pytest.raises(StartupError, match="--root-path"):
        ServeSettings.load({"root_path": path})


def test_keys_are_on_no_command_line(monkeypatch):
    monkeypatch.setenv("QUIRE_API_KEY", "sesame,tahini")
    serve = ServeSettings.load({})
    line = flags(serve, GatewaySettings, scheduler="unix:/a")
    assert not any("sesame" in part or "api-key" in part for part in line)
    assert "sesame" not in repr(serve)
    variables = secret_variables(serve, GatewaySettings)
    assert variables == {"QUIRE_API_KEY": "sesame,tahini"}
    assert secret_variables(serve, SchedulerSettings) == {}
    monkeypatch.setenv("QUIRE_API_KEY", variables["QUIRE_API_KEY"])
    assert GatewaySettings.load({"scheduler": "unix:/a"}).api_key == ["sesame", "tahini"]

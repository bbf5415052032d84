"""vLLM's flags: the table is complete, and each flag does what the table says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from quire import vllm_flags
from quire.cli.serve_command import load
from quire.cli.vllm_command_line import VllmCommandLine
from quire.config import LocalSettings, ServeSettings
from quire.errors import StartupError
from quire.settings import flag_name
from quire.vllm_arguments import translate
from quire.vllm_flags import ALIASES, VLLM_FLAGS, VLLM_VERSION, Kind, VllmFlag

SWITCHES = {name for name, field in ServeSettings.model_fields.items() if field.annotation is bool}


def parse(*words: str) -> VllmCommandLine:
    return VllmCommandLine(list(words), {*ServeSettings.model_fields, "config"}, SWITCHES)


def of_kind(kind: Kind) -> list[Any]:
    return [pytest.param(flag, id=flag.name) for flag in VLLM_FLAGS.values() if flag.kind is kind]


def given(flag: VllmFlag, value: str) -> VllmCommandLine:
    """A command line that gives the flag, before a model."""
    name = flag_name(flag.name)
    return parse("m", name) if flag.is_switch else parse("m", f"{name}={value}")


def test_the_table_names_every_flag_of_vllm_once() -> None:
    recorded = json.loads((Path(__file__).parent / "vllm_flags.json").read_text())
    assert recorded["vllm"] == VLLM_VERSION
    assert set(recorded["names"]) <= VLLM_FLAGS.keys()
    assert len(vllm_flags._flags()) == len(VLLM_FLAGS), "a flag stands in the table twice"
    assert set(ALIASES.values()) <= VLLM_FLAGS.keys()


@pytest.mark.parametrize("flag", of_kind(Kind.TAKEN))
def test_a_taken_flag_is_one_of_ours(flag: VllmFlag) -> None:
    assert flag.name == "config" or flag.name in ServeSettings.model_fields
    assert (flag.name in SWITCHES) == flag.is_switch


@pytest.mark.parametrize("flag", of_kind(Kind.MAPPED))
def test_a_mapped_flag_becomes_a_setting(flag: VllmFlag) -> None:
    value = "info" if flag.setting == "log_level" else "1"
    settings, origins = load(given(flag, value).vllm, {}, None, None)
    expected = ServeSettings.load({flag.setting: False if flag.is_switch else value})
    assert getattr(settings, flag.setting) == getattr(expected, flag.setting)
    assert origins[flag.setting] == flag_name(flag.name)


@pytest.mark.parametrize("flag", of_kind(Kind.NEUTRAL))
def test_a_neutral_flag_changes_nothing_and_says_so(flag: VllmFlag) -> None:
    line = given(flag, "1")
    assert line.own == ["m"]
    result = translate(line.vllm)
    assert result.settings == {}
    assert result.notices == [f"{flag_name(flag.name)} changes nothing: {flag.note}"]


@pytest.mark.parametrize("flag", of_kind(Kind.REFUSED))
def test_a_refused_flag_is_named_with_what_to_do(flag: VllmFlag) -> None:
    value: object = ("true" not in flag.harmless) if flag.is_switch else "7"
    with pytest.raises(StartupError, match=re.escape(flag.note)) as caught:
        translate({flag.name: value})
    assert caught.value.field == flag.name
    assert flag.name.removeprefix("no_").replace("_", "-") in caught.value.message
    for harmless in flag.harmless:
        asked = harmless == "true" if flag.is_switch else harmless
        assert translate({flag.name: asked}).settings == {}
    assert translate({flag.name: None}).settings == {}, "vLLM's constructor arguments are None by default"


@pytest.mark.parametrize(
    ("words", "own"),
    [
        ("m --max_model_len 4k", "m --max-model-len 4000"),
        ("m --max-model-len=4K", "m --max-model-len 4096"),
        ("m --max-model-len auto", "m"),
        ("m --dtype half", "m --dtype float16"),
        ("m -q int8", "m --quantization int8"),
        ("m --ssl-cert-reqs 2", "m --ssl-cert-reqs required"),
        ("m --log-level WARNING", "m --log-level warning"),
        ("m --no_enable_prefix_caching", "m --no-enable-prefix-caching"),
        ("m --kv_pool /a_b", "m --kv-pool /a_b"),
        ("--served-model-name a b m2 --port 1 m", "--served-model-name a --served-model-name b "
         "--served-model-name m2 --port 1 m"),
        ("--served-model-name a m", "--served-model-name a m"),
        ("--served-model-name a --model m", "--served-model-name a --model m"),
        ("m --api-key k1 k2", "m --api-key k1 --api-key k2"),
        ("m --cudagraph-capture-sizes 1 2", "m --cudagraph-capture-sizes 1 --cudagraph-capture-sizes 2"),
        ("--enforce_eager m", "--enforce-eager m"),
        ("m --nonsense 1 --x=2", "m --nonsense 1 --x=2"),
        ("m --help", "m --help"),
        ("-- -m", "-- -m"),
    ],
)  # fmt: skip
def test_spellings_of_our_own_flags(words: str, own: str) -> None:
    line = parse(*words.split())
    assert " ".join(line.own) == own
    assert line.vllm == {}


@pytest.mark.parametrize(
    ("words", "vllm"),
    [
        ("m -tp 1 -pp=1", {"tensor_parallel_size": "1", "pipeline_parallel_size": "1"}),
        ("m -O3", {"optimization_level": "3"}),
        ("m -O 3", {"optimization_level": "3"}),
        ("--enable_sleep_mode m", {"enable_sleep_mode": True}),
        ("m --no-enable-lora", {"enable_lora": False}),
        ("m --compilation-config.mode 3", {"compilation_config": "3"}),
        ('m --compilation-config {"mode":3}', {"compilation_config": '{"mode":3}'}),
        (
            "m --lora-modules a b c --headless",
            {"lora_modules": ["a", "b", "c"], "headless": True},
        ),
        ("m --data-parallel-rank -1", {"data_parallel_rank": "-1"}),
    ],
)
def test_spellings_of_vllms_flags(words: str, vllm: dict[str, object]) -> None:
    line = parse(*words.split())
    assert line.own == ["m"]
    assert line.vllm == vllm


@pytest.mark.parametrize("words", ["--preemption-mode", "--preemption-mode --port 1", "--enable-lora=1"])
def test_a_value_that_is_missing_or_too_much(words: str) -> None:
    with pytest.raises(StartupError, match=r"needs a value|takes no value"):
        parse(*words.split())


def test_two_flags_for_one_setting() -> None:
    assert translate({"gateways": 2, "api_server_count": 2}).settings == {"gateways": 2}
    with pytest.raises(StartupError, match="--api-server-count and --gateways give --gateways two values"):
        translate({"gateways": 2, "api_server_count": 3})


def test_arguments_of_llm() -> None:
    arguments = {"dtype": "half", "max_model_len": None, "tokenizer": "m", "model": "m", "data_parallel_size": 2}
    settings = LocalSettings.load(translate(arguments).settings)
    assert (settings.dtype, settings.num_executors, settings.model) == ("float16", 2, "m")
    with pytest.raises(StartupError, match="--tokenizer other"):
        translate({"model": "m", "tokenizer": "other"})


def test_vllms_variables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    settings, origins = load({}, {}, None, None)
    assert (settings.api_key, settings.kv_cache_memory) == (["sesame"], 2 * 2**30)
    assert origins["api_key"] == "VLLM_API_KEY"
    assert capsys.readouterr().err.splitlines() == [
        "quire serve: VLLM_API_KEY gives --api-key",
        "quire serve: VLLM_CPU_KVCACHE_SPACE gives --kv-cache-memory",
    ]
    monkeypatch.setenv("QUIRE_API_KEY", "tahini")
    settings, origins = load({}, {"kv_cache_memory": "1GiB"}, None, None)
    assert (settings.api_key, settings.kv_cache_memory) == (["tahini"], 2**30)
    assert not capsys.readouterr().err


def test_whoever_uses_none_is_told_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    load({}, {"port": 1}, None, None)
    assert not capsys.readouterr().err

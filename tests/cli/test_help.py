"""--help and completion: what people see before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from quire.cli import app
from quire.config import ServeSettings
from quire.settings import Panel, home


def test_every_flag_is_shown_whole_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, ["serve", "--help"]).output
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for name, field in ServeSettings.model_fields.items():
        flag = name.replace("_", "-")
        assert f"--[no-]{flag} " in shown if field.annotation is bool else f"--{flag} " in shown
        assert field.description, f"--{flag} has no help"


def test_groups_come_in_their_order() -> None:
    shown = CliRunner().invoke(app, ["serve", "--help"]).output
    panels = [
        panel for panel in Panel if any(home(name, ServeSettings).panel == panel for name in ServeSettings.model_fields)
    ]
    places = [shown.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)


def test_commands_are_listed_in_groups() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    groups = ["Serve", "Use a running server", "Measure", "Look inside", "Single processes"]
    places = [shown.index(f"─ {group}") for group in groups]
    assert places == sorted(places)
    assert "─ Commands ─" not in shown, "a command is in no group"


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom quire.cli import app\n"
        "try:\n    app(['serve', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'fastapi', 'grpc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def ask(shell: str, question: str, words: str = "") -> str:
    """What the command tells the shell that asks it through its environment."""
    environment = {
        "_QUIRE_COMPLETE": f"{question}_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    result = CliRunner().invoke(app, [], env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "smol").mkdir(parents=True)
    (tmp_path / "quire.yaml").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("quire ser", "serve"),
        ("quire serve --scheduling-policy fa", "fair"),
        ("quire serve mod", "models/smol/"),
        ("quire serve --config qui", "quire.yaml"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_completion(words: str, offered: str) -> None:
    assert ask("bash", "complete", words).split() == [offered]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
@pytest.mark.usefixtures("folder")
def test_completion_in_other_shells(shell: str) -> None:
    assert "models/smol/" in ask(shell, "complete", "quire serve mod")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(shell: str) -> None:
    assert f"_QUIRE_COMPLETE=complete_{shell}" in ask(shell, "source")

"""What --model names, and what is said of a name that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from quire.config import BUNDLED_MODEL, ServeSettings
from quire.errors import CheckpointError
from quire.model_path import bundled_models, did_you_mean, local_folder


def test_a_folder_a_bundled_model_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_folder("quire-tiny") == BUNDLED_MODEL
    assert ServeSettings.load({"model": "quire-tiny"}).model_name == "quire-tiny"
    assert {"quire-tiny", "quire-tiny-draft"} == set(bundled_models())
    assert local_folder("someone/something") is None
    (tmp_path / "quire-tiny").mkdir()
    assert local_folder("quire-tiny") == Path("quire-tiny"), "a folder of that name wins"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "models" / "smol").mkdir(parents=True)
    for wrong in ("models/smoll", "models/smoll/a/b"):
        with pytest.raises(CheckpointError, match=r"there is no folder .*; did you mean .*/models/smol\?"):
            local_folder(f"{tmp_path}/{wrong}")
    with pytest.raises(CheckpointError, match=r"there is no folder .*/other/x$"):
        local_folder(f"{tmp_path}/other/x")


@pytest.mark.parametrize(("wrong", "hint"), [("quire-tniy", "; did you mean quire-tiny?"), ("a/b", ""), ("", "")])
def test_hints_for_what_could_be_a_hub_id(wrong: str, hint: str) -> None:
    assert did_you_mean(wrong) == hint

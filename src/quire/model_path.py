"""What `--model` names: a folder, a bundled model, or a checkpoint on the hub."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

from quire.errors import CheckpointError

_BUNDLED: Final = Path(__file__).parent / "bundled"


def local_folder(model: str) -> Path | None:
    """The folder of a checkpoint, or None for a hub id; a folder of that name wins, then a bundled model.

    Raises CheckpointError for what can be neither.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"--model: {model} is a file; name the folder of the checkpoint", field="model")
    if model in bundled_models():
        return _BUNDLED / model
    if not model or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise CheckpointError(f"--model: there is no folder {model}{did_you_mean(model)}", field="model")
    return None


def bundled_models() -> list[str]:
    """Names of the models that come with Quire."""
    return sorted(entry.name for entry in _BUNDLED.iterdir() if (entry / "config.json").is_file())


def did_you_mean(model: str) -> str:
    """What to add to a message about a model that is not there: a name like it of a folder or a bundled model."""
    if not model:
        return ""
    # What may be misspelled is the first part that does not exist.
    wanted = Path(model).expanduser()
    while not wanted.parent.is_dir():
        wanted = wanted.parent
    try:
        named = {entry.name: str(wanted.parent / entry.name) for entry in wanted.parent.iterdir() if entry.is_dir()}
    except OSError:
        named = {}
    named |= {name: name for name in bundled_models()}
    near = difflib.get_close_matches(wanted.name, named, n=1, cutoff=0.7)
    return f"; did you mean {named[near[0]]}?" if near else ""

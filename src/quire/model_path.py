"""What `--model` names: a folder, or a checkpoint on the hub."""

from __future__ import annotations

from pathlib import Path

from quire.errors import CheckpointError


def local_folder(model: str) -> Path | None:
    """The folder of a checkpoint, or None for a hub id; a folder of that name wins over a hub id.

    Raises CheckpointError for what can be neither.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"--model: {model} is a file; name the folder of the checkpoint", field="model")
    if not model or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise CheckpointError(f"--model: there is no folder {model}", field="model")
    return None

"""Finding and reading the small files of a checkpoint, in a folder or on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quire.errors import CheckpointError
from quire.model_path import did_you_mean, local_folder


def find_file(model: str, name: str, revision: str | None) -> Path | None:
    """Where a file of a checkpoint lies, downloaded if need be; None if the checkpoint has no such file.

    Raises CheckpointError for a model that is neither a folder nor on the hub.
    """
    if (folder := local_folder(model)) is not None:
        path = folder / name
        return path if path.is_file() else None
    # Imported where it is needed: it costs as much as the rest of a tokenizer's start.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
    except Exception as error:  # a hub call fails in many ways: all mean no checkpoint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = (
            f"--model: {model} is no local folder and cannot be fetched from the hub: {reason}{did_you_mean(model)}"
        )
        raise CheckpointError(message, field="model") from error


def read_json(model: str, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of a checkpoint, empty if there is none. Raises CheckpointError for a damaged one."""
    path = find_file(model, name, revision)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", field="model") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object", field="model")
    return content

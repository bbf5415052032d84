"""The safetensors files of a checkpoint: where they are, and reading one tensor of them.

Files are mapped, never read whole, and nothing in them is executed: no pickle, no code of the model's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from torch import Tensor

from quire.errors import CheckpointError
from quire.model_path import did_you_mean, local_folder

_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_WEIGHT_TYPES: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# What an executor reads; structured output needs the tokenizer.
_HUB_PATTERNS: Final = ("config.json", "model.safetensors", "model-*.safetensors", _INDEX, "tokenizer.json")


def locate_checkpoint(model: str, revision: str | None) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded first, with a progress bar.

    Raises CheckpointError if there is neither.
    """
    return local_folder(model) or _download(model, revision)


def _download(model: str, revision: str | None) -> Path:
    import huggingface_hub  # here, since a local folder need not wait for it

    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=list(_HUB_PATTERNS)))
    # A hub call fails in many ways (no network, no such repository, no access): all mean no checkpoint.
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"--model: {model} is no local folder and cannot be fetched from the hub: {reason}{did_you_mean(model)}",
            field="model",
        ) from error


class Checkpoint:
    """The tensors of a folder by name. Files are opened when first needed and closed with `close`."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError if the folder has no readable weights."""
        self._files: dict[Path, Any] = {}
        index = folder / _INDEX
        single = folder / _SINGLE
        if single.is_file():
            self._paths = dict.fromkeys(self._open(single).keys(), single)
            self._listing = single
        elif index.is_file():
            self._paths = {name: folder / file for name, file in _weight_map(index).items()}
            self._listing = index
        else:
            raise CheckpointError(
                f"{folder} has neither {_SINGLE} nor {_INDEX}; other formats are not loaded", field="model"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._paths

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A view of the mapped file. Raises CheckpointError naming file and tensor."""
        path = self._paths.get(name)
        if path is None:
            raise CheckpointError(f"{self._listing} has no tensor {name}", field="model")
        try:
            tensor: Tensor = self._open(path).get_tensor(name)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path}: tensor {name} cannot be read: {error}", field="model") from error
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, config.json says {list(shape)}", field="model"
            )
        if tensor.dtype not in _WEIGHT_TYPES:
            raise CheckpointError(
                f"{path}: tensor {name} has type {tensor.dtype}, which is not supported", field="model"
            )
        return tensor

    def identity(self) -> str:
        """Tells these files from others, and from what they were before they were written to; nothing is read."""
        lines = []
        for path in sorted({*self._paths.values(), self._listing}):
            try:
                status = path.stat()
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}", field="model") from error
            lines.append(f"{path.resolve()} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}")
        return "\n".join(lines)

    def close(self) -> None:
        self._files.clear()

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safetensors.safe_open(path, framework="pt")
            except FileNotFoundError as error:
                raise CheckpointError(f"{path} does not exist, but {_INDEX} names it", field="model") from error
            except (OSError, safetensors.SafetensorError) as error:
                raise CheckpointError(f"{path} is damaged or truncated: {error}", field="model") from error
        return self._files[path]


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name → file name."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read: {type(error).__name__}: {error}", field="model") from error
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError(f"{index}: weight_map must map tensor names to file names", field="model")
    for file in names.values():
        if Path(file).name != file:
            raise CheckpointError(f"{index}: {file!r} is not the name of a file beside it", field="model")
    return names

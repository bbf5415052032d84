"""Where processes of ours put their sockets: a folder of mode 0700 whose path is short enough for them."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from quire.errors import StartupError

# sun_path (unix(7)) has 108 bytes, the last of which is zero.
_MAX_SOCKET_PATH: Final = 107
# The folder's name, and the longest name of a socket in it, with the slashes before them.
_PREFIX: Final = "quire-"
_NAME_BYTES: Final = 4
_ROOM: Final = len(f"/{_PREFIX}") + 2 * _NAME_BYTES + len("/executor-63b.sock")
_MAKING_TIMEOUT_S: Final = 30.0
_MAKING_INTERVAL_S: Final = 0.002


def make_runtime_dir() -> Path:
    """A new folder for sockets; its maker removes it.

    It lies in TMPDIR, or in /tmp where that is too long. Raises StartupError where neither will do.
    """
    path = choose_runtime_dir()
    create_runtime_dir(path)
    return path


def choose_runtime_dir() -> Path:
    """A name for such a folder that nothing has. Raises StartupError where there is no place for one."""
    tried = []
    for parent in _parents():
        if len(parent.encode()) + _ROOM > _MAX_SOCKET_PATH:
            tried.append(f"{parent} is too long for the path of a socket")
        elif not os.access(parent, os.W_OK | os.X_OK):
            tried.append(f"{parent} cannot be written")
        else:
            return Path(parent, _PREFIX + secrets.token_hex(_NAME_BYTES))
    raise StartupError(f"no folder for sockets: {'; '.join(tried)}. Set TMPDIR to a shorter path.", field="TMPDIR")


def create_runtime_dir(path: Path) -> None:
    """Makes the folder whose name was chosen. Raises StartupError if it cannot be made, or somebody else made it."""
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise StartupError(f"no folder for sockets: {path}: {error.strerror}", field="TMPDIR") from error


def await_runtime_dir(path: Path, maker_lives: Callable[[], bool]) -> None:
    """Blocks until the folder is there and ours, or whoever was about to make it has died.

    Raises StartupError if neither comes true in time.
    """
    deadline = time.monotonic() + _MAKING_TIMEOUT_S
    while not _is_own_folder(path) and maker_lives():
        if time.monotonic() > deadline:
            raise StartupError(f"the folder for sockets, {path}, was not made")
        time.sleep(_MAKING_INTERVAL_S)


def find_runtime_dirs() -> list[Path]:
    """The folders of that kind that belong to our user; what is in them may be left of a process that has died."""
    return [path for parent in _parents() for path in sorted(Path(parent).glob(f"{_PREFIX}*")) if _is_own_folder(path)]


def _parents() -> list[str]:
    return list(dict.fromkeys((tempfile.gettempdir(), "/tmp")))  # noqa: S108 (the folder there is private)


def _is_own_folder(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:  # removed meanwhile
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077

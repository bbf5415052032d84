"""Where processes of ours put their sockets: a folder of mode 0700 whose path is short enough for them."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from quire.errors import StartupError

# sun_path (unix(7)) has 108 bytes, the last of which is zero.
_MAX_SOCKET_PATH: Final = 107
# The name that mkdtemp makes, and the longest name of a socket in it, with the slashes before them.
_PREFIX: Final = "quire-"
_ROOM: Final = len(f"/{_PREFIX}12345678") + len("/executor-63b.sock")


def make_runtime_dir() -> Path:
    """A new folder for sockets; its maker removes it.

    It lies in TMPDIR, or in /tmp where that is too long. Raises StartupError where neither will do.
    """
    tried = []
    for parent in _parents():
        if len(parent.encode()) + _ROOM > _MAX_SOCKET_PATH:
            tried.append(f"{parent} is too long for the path of a socket")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            tried.append(f"{parent}: {error.strerror}")
    raise StartupError(f"no folder for sockets: {'; '.join(tried)}. Set TMPDIR to a shorter path.", field="TMPDIR")


def find_runtime_dirs() -> list[Path]:
    """The folders of that kind that belong to our user; what is in them may be left of a process that has died."""
    return [path for parent in _parents() for path in sorted(Path(parent).glob(f"{_PREFIX}*")) if _is_own_folder(path)]


def _parents() -> list[str]:
    return list(dict.fromkeys((tempfile.gettempdir(), "/tmp")))  # noqa: S108 (mkdtemp's folder is private)


def _is_own_folder(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:  # removed meanwhile
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077

"""Hatchling's build hook: protobuf stubs and the native kernels become part of the package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build_native
import generate_protos


class QuireBuildHook(BuildHookInterface[Any]):
    """Runs before a wheel or an editable installation is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generates and compiles what git does not hold."""
        if self.target_name != "wheel":
            return
        generate_protos.generate()
        build_native.build()
        # Native code: the wheel is for this platform, but for any Python 3.
        build_data["pure_python"] = False
        build_data["infer_tag"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"


def _platform_tag() -> str:
    from packaging.tags import sys_tags

    portable = ("manylinux", "musllinux")
    return next(tag.platform for tag in sys_tags() if not tag.platform.startswith(portable))

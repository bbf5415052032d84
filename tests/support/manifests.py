"""The Kubernetes manifests: what is in the files, and what kustomize makes of them where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from support.deployment import DEPLOY, load_yaml

FOLDER: Final = DEPLOY / "kubernetes"
# Read by others than Kubernetes.
_NO_MANIFESTS: Final = {"kustomization.yaml", "prometheus-adapter-values.yaml"}
_COMPONENTS: Final = sorted(path.name for path in (FOLDER / "components").iterdir())
VARIANTS: Final = ["base", "split-pod", "split-hosts", *(f"components/{name}" for name in _COMPONENTS)]

Manifest = Mapping[str, Any]


def written() -> list[tuple[Path, Manifest]]:
    """Every manifest and patch, with its file."""
    paths = [path for path in sorted(FOLDER.rglob("*.yaml")) if path.name not in _NO_MANIFESTS]
    return [(path, manifest) for path in paths for manifest in load_yaml(path)]


def rendered(variant: str, folder: Path) -> list[Manifest]:
    """What would be applied; skips the test where neither kustomize nor kubectl is installed."""
    command = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    if shutil.which(command[0]) is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    target = FOLDER / variant
    if variant.startswith("components/"):
        target = _overlay(target, folder)
    result = subprocess.run([*command, target], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def _overlay(component: Path, folder: Path) -> Path:
    """The base with one component; kustomize takes no absolute paths and nothing outside of its folder's tree."""
    copy = folder / "kubernetes"
    shutil.copytree(FOLDER, copy)
    overlay = copy / "overlay"
    overlay.mkdir()
    content = {"resources": ["../base"], "components": [f"../{component.relative_to(FOLDER)}"]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump({**content, "kind": "Kustomization"}))
    return overlay


def pods(manifests: list[Manifest]) -> Iterator[Mapping[str, Any]]:
    """The specs of the Pods that Deployments make."""
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            yield manifest["spec"]["template"]["spec"]


def containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All of them, sidecars too."""
    return [*pod.get("initContainers", []), *pod.get("containers", [])]

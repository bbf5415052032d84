"""The project's own rules about its files."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_package_named_kernels_is_not_ours():
    """Transformers imports a package of that name if it finds one, so the root must not be on the module path."""
    spec = importlib.util.find_spec("kernels")
    assert spec is None or not str(spec.origin).startswith(str(ROOT))


def test_every_root_folder_is_part_of_the_package():
    for name in ("gateway", "scheduler", "executor", "kernels"):
        link = ROOT / "src" / "quire" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


def test_the_scheduler_starts_without_torch():
    code = "import sys, quire.scheduler.server; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_no_pickle_and_no_remote_code():
    forbidden = re.compile(r"import pickle|pickle\.|torch\.load\(|trust_remote_code\s*=\s*True")
    for folder in ("gateway", "scheduler", "executor", "kernels", "src/quire"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not forbidden.search(path.read_text()), path


def test_the_readme_names_what_exists():
    """Every file and folder in the README's tree is there."""
    tree = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    for line in tree[1].splitlines():
        name = line.split()[0] if line.split() else ""
        if name and not line.startswith(" "):
            assert (ROOT / name).exists(), name

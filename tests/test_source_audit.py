"""What must not be in the source: ways to run what strangers wrote, and doors that stand open by default."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "gateway", "scheduler", "executor", "kernels")

# Modules whose formats run code, or whose start of processes copies threads and descriptors.
_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle", "multiprocessing", "pty")
_CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "runs text",
    "__import__": "runs what a name says",
    "torch.load": "unpickles",
    "numpy.load": "may unpickle",
    "np.load": "may unpickle",
    "yaml.load": "makes any object",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "makes objects",
    "os.fork": "forks",
    "os.forkpty": "forks",
    "os.system": "is a shell",
    "os.popen": "is a shell",
    "subprocess.getoutput": "is a shell",
    "subprocess.getstatusoutput": "is a shell",
    "ssl._create_unverified_context": "trusts everybody",
    "tempfile.mktemp": "names a file that somebody else may make",
}
# Of any call.
_ARGUMENTS = {
    "trust_remote_code": "runs the checkpoint's code",
    "shell": "is a shell",
    "allow_pickle": "unpickles",
    "weights_only": None,
    "preexec_fn": "runs between fork and exec",
}
_FALSE_ARGUMENTS = {"verify": "trusts everybody", "check_hostname": "trusts everybody", "weights_only": "unpickles"}
_OPEN_ADDRESSES = re.compile(r"^(0\.0\.0\.0|::|\[::\])(:\d+)?$")


def findings(source: str) -> list[str]:
    """What is wrong with a module: 'line: what'."""
    return [f"{line}: {what}" for line, what in _walk(ast.parse(source))]


def _walk(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            for alias in node.names:
                if (full := f"{node.module}.{alias.name}") in _CALLS:
                    yield node.lineno, f"{full} {_CALLS[full]}"
        else:
            names = []
        for name in names:
            if name.split(".")[0] in _MODULES:
                yield node.lineno, f"imports {name}"
        if isinstance(node, ast.Call):
            yield from _check_call(node)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr == "check_hostname" and _is(node.value, False):
                    yield node.lineno, "check_hostname = False trusts everybody"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _OPEN_ADDRESSES.match(node.value):
            yield node.lineno, f"{node.value} is every address of the host"


def _check_call(call: ast.Call) -> Iterator[tuple[int, str]]:
    name = ast.unparse(call.func)
    if name in _CALLS:
        yield call.lineno, f"{name} {_CALLS[name]}"
    for argument in call.keywords:
        what = _ARGUMENTS.get(argument.arg or "")
        if what is not None and not _is(argument.value, False):
            yield call.lineno, f"{argument.arg} {what}"
        if (what := _FALSE_ARGUMENTS.get(argument.arg or "")) is not None and _is(argument.value, False):
            yield call.lineno, f"{argument.arg}=False {what}"


def _is(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _modules() -> list[Path]:
    generated = ("_pb2", "_pb2_grpc")
    return [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.stem.endswith(generated) and "build" not in path.parts
    ]


def test_the_source() -> None:
    modules = _modules()
    assert len(modules) > 150
    found = [f"{path.relative_to(ROOT)}:{finding}" for path in modules for finding in findings(path.read_text())]
    assert not found


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", "imports pickle"),
        ("from multiprocessing import Process", "imports multiprocessing"),
        ("from torch import load", "torch.load unpickles"),
        ("torch.load(path)", "torch.load unpickles"),
        ("yaml.load(text, Loader=yaml.SafeLoader)", "yaml.load makes any object"),
        ("eval(text)", "eval runs text"),
        ("if True:\n    os.fork()", "os.fork forks"),
        ("subprocess.run('x', shell=True)", "shell is a shell"),
        ("AutoTokenizer.from_pretrained(m, trust_remote_code=flag)", "trust_remote_code runs the checkpoint's code"),
        ("httpx.get(url, verify=False)", "verify=False trusts everybody"),
        ("context.check_hostname = False", "check_hostname = False trusts everybody"),
        ("host = '0.0.0.0'", "0.0.0.0 is every address of the host"),
    ],
)
def test_it_finds_what_it_looks_for(source: str, what: str) -> None:
    assert [finding.partition(": ")[2] for finding in findings(source)] == [what]


def test_it_lets_the_rest_pass() -> None:
    for source in ("model.eval()", "re.compile('x')", "yaml.safe_load(text)", "f(shell=False)", "host = '127.0.0.1'"):
        assert findings(source) == []

"""The JSON Schema Test Suite: a schema is either enforced, and then every output validates, or refused with a reason.

The suite's schemas are generated from; its instances are for validators and not used. It comes with the source of
jsonschema, the validator that judges here (MIT licence), at the version that is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from live_server import MODEL, LiveServer

NUM_OUTPUTS = 3
MAX_TOKENS = 160
VALIDATORS: dict[str, Any] = {
    "draft2020-12": jsonschema.Draft202012Validator,
    "draft7": jsonschema.Draft7Validator,
}
# Outcomes that there must be at least, so that a server which refuses everything does not pass.
LEAST = {"enforced": 180, "complete outputs": 200}


@pytest.fixture(scope="session")
def suite() -> Path:
    """The folder `tests` of the suite, fetched once into the environment that runs this."""
    version = importlib.metadata.version("jsonschema")
    folder = Path(sys.prefix) / f"jsonschema-{version}"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "jsonschema"]
        subprocess.run([*command, "--dest", sys.prefix, f"jsonschema=={version}"], check=True, timeout=150)
        with tarfile.open(Path(sys.prefix) / f"jsonschema-{version}.tar.gz") as archive:
            archive.extractall(sys.prefix, filter="data")
    return folder / "json" / "tests"


def schemas_of(folder: Path) -> Iterator[tuple[str, Any]]:
    """(what it is called, the schema)."""
    for file in sorted(folder.rglob("*.json")):
        for case in json.loads(file.read_text(encoding="utf-8")):
            yield f"{file.relative_to(folder)}: {case['description']}", case["schema"]


def outcomes_of(client: httpx.Client, name: str, schema: Any, validator: Any) -> Counter[str]:
    """What became of one schema. Raises AssertionError for an output that does not validate."""
    format_ = {"type": "json_schema", "json_schema": {"name": "suite", "schema": schema, "strict": True}}
    body = {"model": MODEL, "prompt": "JSON: ", "temperature": 1.0, "seed": 7, "response_format": format_}
    answer = client.post("/completions", json={**body, "n": NUM_OUTPUTS, "max_tokens": MAX_TOKENS})
    if answer.status_code == 400:
        check_refusal(name, schema, answer.json()["error"])
        return Counter(["refused"])
    assert answer.status_code == 200, f"{name}: {answer.text}"
    outcomes = Counter(["enforced"])
    for choice in answer.json()["choices"]:
        assert choice["finish_reason"] in ("stop", "length"), name
        if choice["finish_reason"] == "length":
            outcomes["outputs cut by length"] += 1
            continue
        outcomes["complete outputs"] += 1
        try:
            validator(schema).validate(json.loads(choice["text"]))
        except re.error:  # a regular expression of JSON Schema's that Python's do not know
            outcomes["outputs that jsonschema cannot judge"] += 1
        except (jsonschema.ValidationError, json.JSONDecodeError) as error:
            raise AssertionError(f"{name}: {choice['text']!r} is not what the schema says: {error}") from error
    return outcomes


def check_refusal(name: str, schema: Any, error: dict[str, Any]) -> None:
    assert error["param"] == "response_format.json_schema.schema", (name, error)
    reason = re.fullmatch(r"(?s)response_format\.json_schema\.schema cannot be enforced: (.+)", error["message"])
    assert reason, (name, error)
    if listed := re.fullmatch(r"Unimplemented keys: (\[.*\])", reason[1]):
        text = json.dumps(schema)
        for keyword in json.loads(listed[1]):
            # Or it is in a schema that this one refers to: drafts' own are known.
            assert f'"{keyword}"' in text or "json-schema.org" in text, (name, error)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("draft", VALIDATORS)
def test_every_schema(server: LiveServer, suite: Path, draft: str, capsys: pytest.CaptureFixture[str]) -> None:
    total: Counter[str] = Counter()
    with httpx.Client(base_url=server.base_url, timeout=600) as client, ThreadPoolExecutor(8) as pool:
        pending = [
            pool.submit(outcomes_of, client, name, schema, VALIDATORS[draft])
            for name, schema in schemas_of(suite / draft)
        ]
        for future in pending:
            total += future.result()
    with capsys.disabled():
        print(f"\nJSON Schema Test Suite, {draft}: {len(pending)} schemas, {dict(total)}")
    assert all(total[outcome] >= least for outcome, least in LEAST.items()), total

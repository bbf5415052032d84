"""Lines of the log: one for each record, whatever it holds."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from quire.logs import JsonFormatter, TextFormatter

EVIL = "one\r\n2026-01-01 00:00:00,000 ERROR gateway 0: two\x1b[31m\x85three\u2028four\x00"


def _record(message: str, *args: object, **more: Any) -> logging.LogRecord:
    logger = logging.Logger("quire.some")
    records: list[logging.LogRecord] = []
    logger.addHandler(_Keep(records))
    logger.warning(message, *args, **more)
    return records[0]


class _Keep(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


def test_a_line_for_people():
    line = TextFormatter("gateway 0").format(_record("served %d of %s", 3, "Zoë"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING gateway 0: served 3 of Zoë", line)


def test_a_line_for_programs():
    line = JsonFormatter("gateway 0").format(_record("served %d", 3, extra={"request_id": "r", "queue_s": 0.5}))
    values = json.loads(line)
    moment = datetime.fromisoformat(values.pop("time"))
    assert abs((datetime.now(moment.tzinfo) - moment).total_seconds()) < 600
    assert values == {
        "level": "warning",
        "process": "gateway 0",
        "logger": "quire.some",
        "message": "served 3",
        "request_id": "r",
        "queue_s": 0.5,
    }


def test_what_a_record_is_given_cannot_replace_its_own_fields():
    values = json.loads(JsonFormatter("scheduler").format(_record("x", extra={"level": "none", "time": 3})))
    assert values["level"] == "warning"
    assert values["time"].endswith("Z")


@pytest.mark.parametrize("formatter", [TextFormatter("gateway 0"), JsonFormatter("gateway 0")])
def test_nothing_in_a_message_makes_a_second_line(formatter: logging.Formatter):
    line = formatter.format(_record("refused %s", EVIL, extra={"request_id": EVIL}))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_a_traceback_is_a_field_for_programs_and_indented_for_people():
    try:
        raise ValueError(EVIL)
    except ValueError:
        record = _record("failed", exc_info=True)
    assert f"ValueError: {EVIL}" in json.loads(JsonFormatter("gateway 0").format(record))["exception"]
    first, *rest = TextFormatter("gateway 0").format(record).splitlines()
    assert first.endswith("gateway 0: failed")
    assert rest
    assert all(line.startswith("  ") for line in rest)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_record_and_a_warning_are_written_once(log_format: str):
    """By a process of its own: pytest has its own ideas of logging."""
    code = f"""
import logging, warnings
from quire.logs import configure_logging
logging.warning("before")
configure_logging("executor 1", "info", {log_format!r})
configure_logging("executor 1", "info", {log_format!r})
logging.getLogger("quire.a").info("said")
logging.getLogger("quire.a").debug("not said")
logging.getLogger("httpx").info("not said")
warnings.warn("careful")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    _, *lines = run.stderr.splitlines()
    assert len(lines) == 2
    assert [("said" in line, "careful" in line) for line in lines] == [(True, False), (False, True)]
    assert all("executor 1" in line for line in lines)
    if log_format == "json":
        assert [json.loads(line)["level"] for line in lines] == ["info", "warning"]

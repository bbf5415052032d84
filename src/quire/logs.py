"""What every process writes to standard error: lines for people, or one JSON object per line for programs.

One record is one line, whatever is in it. Only a traceback in the text form has more, all of which are indented, so
that no line of a client's making can look like a record.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Final, Literal, TypeAlias

LogFormat: TypeAlias = Literal["text", "json"]

# What libraries say at INFO is not for the operator.
_NOISY: Final = ("httpx", "huggingface_hub", "transformers", "asyncio", "opentelemetry")
# Control characters, and what else may be taken for the end of a line, as Python writes them in strings.
_ESCAPES: Final = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029)}
# Whatever else a record has was given to it as `extra`.
_OWN_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(process: str, level: str, log_format: LogFormat) -> None:
    """Has this process, which is called `process`, log to standard error; what was configured before is undone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else TextFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def report_error(program: str, message: str, log_format: LogFormat) -> None:
    """Tells why a program ends: to people in a line of its own."""
    if log_format == "json":
        logging.getLogger(__name__).error("%s", message)
    else:
        print(f"{program}: error: {message}", file=sys.stderr)  # noqa: T201


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO gateway 0: message`, in local time."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process}: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line."""
        record.message = record.message.translate(_ESCAPES)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback."""
        return "\n".join(f"  {line}" for line in super().formatException(ei).splitlines())


class JsonFormatter(logging.Formatter):
    """An object with `time` (RFC 3339, UTC), `level`, `process`, `logger`, `message`, what was given as `extra`, and
    `exception` with the traceback if there is one.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The object; it is ASCII."""
        milliseconds = int(record.msecs)
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{milliseconds:03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in record.__dict__.items():
            if name not in _OWN_ATTRIBUTES:
                line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)

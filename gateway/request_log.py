"""One line in the log for each request when it ends. docs/observability.md has a table of the fields."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from quire.gateway.request_record import RequestRecord
from quire.logs import LogFormat

logger = logging.getLogger(__name__)


class RequestLog:
    """A RequestObserver. Prompts and outputs are written only if records hold them (`Recorder.keeps_text`)."""

    def __init__(self, log_format: LogFormat, max_log_len: int | None = None) -> None:
        """`max_log_len`: characters of a prompt, or of an output, that are written."""
        self._as_json = log_format == "json"
        self._max_log_len = max_log_len

    def on_tokens(self, record: RequestRecord, num_tokens: int, interval_s: float | None) -> None:
        """Writes nothing."""

    def on_end(self, record: RequestRecord) -> None:
        """Writes the line."""
        level = logging.INFO
        if record.error is not None:
            record.error.is_logged = True
            level = logging.WARNING if record.error.http_status >= 500 else level
        if not logger.isEnabledFor(level):
            return
        if self._as_json:
            logger.log(level, "request", extra=fields_of(record) | self._texts(record))
        else:
            logger.log(level, "%s%s", line_of(record), "".join(f"  {k}={v!r}" for k, v in self._texts(record).items()))

    def _texts(self, record: RequestRecord) -> dict[str, Any]:
        if record.prompt is None or record.outputs is None:
            return {}
        outputs = ["".join(pieces) for _, pieces in sorted(record.outputs.items())]
        return {
            "prompt": self._cut(record.prompt),
            "outputs": [self._cut(output) for output in outputs],
        }

    def _cut(self, text: str | Sequence[int]) -> str | Sequence[int]:
        return text if self._max_log_len is None else text[: self._max_log_len]


def fields_of(record: RequestRecord) -> dict[str, Any]:
    """The fields of a line in JSON. Times are seconds; None where it did not come to that."""
    return {
        "event": "request",
        "request_id": record.request_id,
        "tenant": record.tenant.name,
        "route": record.origin.route,
        "operation": record.operation,
        "finish_reasons": record.finish_reasons,
        "error": None if record.error is None else record.error.code,
        "error_message": None if record.error is None else record.error.message,
        "prompt_tokens": record.num_prompt_tokens,
        "cached_tokens": record.num_cached_tokens,
        "output_tokens": record.num_output_tokens,
        "num_sequences": record.num_sequences,
        "num_attempts": record.num_attempts,
        "queue_s": _rounded(record.queued_s),
        "ttft_s": _rounded(record.time_to_first_token_s),
        "mean_itl_s": _rounded(record.mean_inter_token_s),
        "e2e_s": _rounded(record.total_s),
        "output_tokens_per_s": round(record.output_tokens_per_s, 2),
        "trace_id": record.trace_parent[3:35] or None,
    }


def line_of(record: RequestRecord) -> str:
    """The line for people: columns of fixed width first."""
    outcome = record.error.code if record.error is not None else ",".join(dict.fromkeys(record.finish_reasons))
    parts = [
        f"{outcome or '-':<6}",
        f"{record.num_prompt_tokens:>5} → {record.num_output_tokens:>4} tokens",
        f"queue {_time(record.queued_s)}",
        f"ttft {_time(record.time_to_first_token_s)}",
        f"itl {_time(record.mean_inter_token_s)}",
        f"e2e {_time(record.total_s)}",
        f"{record.output_tokens_per_s:>6.1f} tok/s",
        f"{record.origin.route} {record.request_id}",
    ]
    if record.num_cached_tokens:
        parts.append(f"{record.num_cached_tokens} cached")
    if record.tenant.name:
        parts.append(f"of {record.tenant.name}")
    if record.num_attempts > 1:
        parts.append(f"{record.num_attempts} attempts")
    if record.error is not None:
        parts.append(record.error.message)
    return "  ".join(parts)


def _time(seconds: float | None) -> str:
    """Eight characters, whatever the size."""
    if seconds is None:
        return f"{'-':>8}"
    return f"{seconds * 1e3:>5.1f} ms" if seconds < 1 else f"{seconds:>6.2f} s"


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)

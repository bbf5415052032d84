"""A line in the log for each request that was refused before it ran; in a flood, for the first ones of each second."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final

from quire.errors import InvalidRequestError, ModelNotFoundError, QuireError

logger = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
# Lines within a period; what is beyond is counted.
_MAX_LINES: Final = 10
# Names of fields may be what a client sent; characters.
_MAX_FIELD: Final = 100


class RefusalLog:
    """Of one gateway. Says which field was wrong, and nothing of what it held."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        # Of the period that runs, if one does.
        self._num_lines = 0
        self._left_out: Counter[str] = Counter()

    def note(self, error: QuireError, route: str, request_id: str = "", tenant: str = "") -> None:
        """A request is answered with an error; does nothing if it had run, and its own line tells of it."""
        level = logging.WARNING if error.http_status >= 500 else logging.INFO
        if not self._enabled or error.is_logged or not logger.isEnabledFor(level):
            return
        error.is_logged = True
        if not self._num_lines:
            asyncio.get_running_loop().call_later(_PERIOD_S, self._end_period)
        if self._num_lines == _MAX_LINES:
            self._left_out[error.code] += 1
            return
        self._num_lines += 1
        field = error.field and error.field[:_MAX_FIELD]
        fields = {
            "event": "refused",
            "request_id": request_id,
            "tenant": tenant,
            "route": route,
            "error": error.code,
            "field": field,
        }
        # These messages quote requests.
        quotes = isinstance(error, InvalidRequestError | ModelNotFoundError)
        reason = f" ({field})" * bool(field) if quotes else f": {error.message}"
        logger.log(level, "refused: %s%s  %s %s", error.code, reason, route, request_id, extra=fields)

    def _end_period(self) -> None:
        left_out, self._left_out, self._num_lines = self._left_out, Counter(), 0
        if left_out:
            named = ", ".join(f"{count} {code}" for code, count in left_out.most_common())
            fields = {"event": "refused_left_out", "counts": dict(left_out)}
            logger.info("refused and not written here, in one second: %s", named, extra=fields)

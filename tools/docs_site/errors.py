"""The table of errors, from quire/errors.py."""

from __future__ import annotations

from quire.errors import QuireError, RingError, StartupError, all_errors


def render() -> str:
    """Errors that clients get: a row per class."""
    rows = ["| HTTP | gRPC | `code` | `type` | meaning |", "|---|---|---|---|---|"]
    served = [
        error
        for error in all_errors()
        if error.__module__ == QuireError.__module__ and not issubclass(error, (RingError, StartupError))
    ]
    for error in sorted(served, key=lambda error: (error.http_status, error.code)):
        summary = "A defect of the server." if error is QuireError else (error.__doc__ or "").splitlines()[0]
        rows.append(f"| {error.http_status} | {error.grpc_code} | `{error.code}` | `{error.type}` | {summary} |")
    return "\n".join(rows)

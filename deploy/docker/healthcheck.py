"""Whether the server of this container is healthy: status 0 or 1, for Docker's HEALTHCHECK.

It sees settings that are QUIRE_* variables, and none that are flags: set a port other than 8000, and TLS, by variables.
Standard library only, so that it costs little.
"""

import os
import ssl
import sys
import urllib.request

TIMEOUT_S = 4.0


def main() -> int:
    """Asks /health."""
    port = os.environ.get("QUIRE_PORT", "8000")
    # The certificate names the host that clients know, not loopback, over which we ask whether somebody is at home.
    context = ssl._create_unverified_context() if "QUIRE_SSL_CERTFILE" in os.environ else None
    url = f"{'http' if context is None else 'https'}://127.0.0.1:{port}/health"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context):
            return 0
    except OSError as error:  # among them what HTTP calls an error
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""`PYTHONPATH=tools python -m docs_site`: the site in build/docs, from a copy of the pages in build/docs-source."""

from __future__ import annotations

import subprocess
import sys

from docs_site.check import broken_links
from docs_site.pages import DOCS, OUT, ROOT, SOURCE, stage


def main() -> int:
    """Builds and checks; returns the exit status."""
    stage()
    doctrees = ROOT / "build" / "docs-doctrees"
    # -n: every reference must resolve; -W: a warning is an error.
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-b", "html"]
    status = subprocess.run([*command, "-c", DOCS, "-d", doctrees, SOURCE, OUT], check=False).returncode
    if status:
        return status
    broken = broken_links(OUT)
    print("\n".join(broken) or f"docs: {OUT.relative_to(ROOT)}/index.html")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""The `quire` command, also as `python -P -m quire`. (-P keeps the working directory off the module path.)"""

import signal
import sys


def main() -> int:
    """Entry point; returns the exit status."""
    # The imports below take most of a second. Who presses Ctrl-C meanwhile wants no traceback, so it ends the process
    # as it ends others. A command that has begun gets KeyboardInterrupt again, unless SIGINT is ignored altogether.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from quire import cli

    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())

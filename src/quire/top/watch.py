"""`quire top`: shows a server's states as they come, on a terminal, as lines, or one of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator
from typing import Final

from rich.console import Console
from rich.live import Live

from quire.client import Client
from quire.errors import RequestAbortedError, ServiceUnavailableError
from quire.monitor_json import to_plain
from quire.top.view import View

# Between attempts to reach a server that is not there.
_RETRY_S: Final = 1.0
# Until a server must have given its first states, where nobody watches for it.
_ONCE_TIMEOUT_S: Final = 30.0


def show_once(client: Client, address: str, interval: float, *, as_json: bool) -> None:
    """Prints one state. Its rates are those between it and one before. Raises QuireError."""
    view = View(address)
    states = client.watch(interval=interval, with_blocks=True, timeout=_ONCE_TIMEOUT_S + 2 * interval)
    try:
        first = next(states)
        view.add(first)
        if as_json:
            print(json.dumps(to_plain(first)))  # noqa: T201
            return
        view.add(next(states))
    finally:
        states.close()
    console = Console()
    console.print(view.render(console.width, sys.maxsize))


def show(client: Client, address: str, interval: float) -> None:
    """Shows states until Ctrl-C: a picture on a terminal, else a line for each. Raises QuireError."""
    view, console = View(address), Console()
    try:
        if not console.is_terminal:
            for _ in _states(client, view, interval):
                print(time.strftime("%H:%M:%S"), view.line(), flush=True)  # noqa: T201
            return
        with Live(
            get_renderable=lambda: view.render(console.width, console.height),
            console=console,
            screen=True,
            auto_refresh=False,
        ) as live:
            for _ in _states(client, view, interval):
                live.refresh()
    except KeyboardInterrupt:
        pass  # that is how it ends


def _states(client: Client, view: View, interval: float) -> Generator[None, None, None]:
    """Comes back when there is something new to show: a state, or that the server has gone."""
    while True:
        states = client.watch(interval=interval, with_blocks=True)
        try:
            for state in states:
                view.add(state)
                yield
        except (ServiceUnavailableError, RequestAbortedError) as error:
            view.trouble = error.message
            yield
            time.sleep(_RETRY_S)
        finally:
            states.close()

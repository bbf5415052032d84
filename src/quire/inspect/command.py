"""`quire inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from quire.errors import InvalidRequestError, KvPoolError, StartupError

if TYPE_CHECKING:
    from quire.inspect.block_map import BlockMap

_DAMAGED: Final = 2


def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PATH|PID",
            help="A pool file (--kv-pool; ./123 if its name is a number), or any process of a server or of an LLM.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="Draw each block into a .svg, or a .png (extra: bench).")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Address of the scheduler, where `quire serve` or an LLM has not started it: unix:/path"),
    ] = None,
) -> None:
    """Look into a KV pool from outside: header, journal, occupancy, block tables, leaks.

    Nothing is written to the pool, and its server is not disturbed. Exit status: 0 sound, 1 it cannot be read (no
    pool, another version, no such process, no rights), 2 damage or a leak was found.
    """
    # Imported now: every process of ours reads this module on its way to its own command.
    from quire.inspect.block_map import draw_map
    from quire.inspect.inspection import inspect as look_at
    from quire.inspect.report import print_report, to_json
    from quire.inspect.target import find_target

    if map_file is not None:
        _check_map_file(map_file, target)
    opened = find_target(target, scheduler)
    try:
        found = look_at(opened)
    except OSError as error:
        raise KvPoolError(f"cannot read {opened.name}: {error.strerror}", field="target") from error
    finally:
        opened.close()
    if as_json:
        typer.echo(json.dumps(to_json(found), indent=2))
    else:
        print_report(found)
    if map_file is not None:
        _draw(draw_map(found), map_file)
    raise typer.Exit(0 if found.is_sound else _DAMAGED)


def _check_map_file(path: Path, target: str) -> None:
    """Before anything is done. Raises InvalidRequestError and StartupError."""
    if path.suffix not in (".svg", ".png"):
        raise InvalidRequestError(f"--map: {path} is neither a .svg nor a .png", field="map")
    if path.exists() and Path(target).exists() and path.samefile(target):
        raise InvalidRequestError(f"--map: {path} is the pool itself", field="map")
    if path.suffix == ".png":
        from quire.bench.plot import require_matplotlib

        require_matplotlib("--map")


def _draw(block_map: BlockMap | None, path: Path) -> None:
    """Raises StartupError if it cannot be drawn."""
    from quire.inspect.png import write_png
    from quire.inspect.svg import to_svg

    if block_map is None:
        typer.echo(f"no map is drawn to {path}: nothing is known of the blocks", err=True)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".svg":
            path.write_text(to_svg(block_map), encoding="utf-8")
        else:
            write_png(block_map, path)
    except OSError as error:
        raise StartupError(f"cannot write {path}: {error.strerror}", field="map") from error
    typer.echo(f"map: {path}", err=True)

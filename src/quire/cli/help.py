"""--help of a command whose flags come from a settings class: one box per panel, readable in 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from typer import Context
from typer.core import TyperArgument, TyperCommand, TyperOption

from quire.settings import Panel

if TYPE_CHECKING:
    from rich.panel import Panel as Box

_MAX_WIDTH: Final = 110


class SettingsHelp(TyperCommand):
    """A command that shows its flags as `--flag VALUE`, an on/off pair as `--[no-]flag`."""

    def format_help(self, ctx: Context, formatter: Any) -> None:  # type: ignore[override]
        """Prints; `formatter` gets nothing."""
        # Imported now: every process of ours reads this module on its way to its own command.
        from rich.console import Console
        from rich.markup import escape

        console = Console(highlight=False)
        console.width = min(console.width, _MAX_WIDTH)
        usage = " ".join(self.collect_usage_pieces(ctx))
        console.print(f"\n[bold]Usage:[/bold] {ctx.command_path} {escape(usage)}\n\n{escape(self.help or '')}\n")
        arguments = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, TyperArgument)]
        if arguments:
            console.print(_box("Arguments", [(str(entry.metavar), entry.help or "") for entry in arguments]))
        panels: dict[Panel, list[TyperOption]] = {}
        for option in self.get_params(ctx):
            if isinstance(option, TyperOption) and not option.hidden:
                panels.setdefault(Panel(option.rich_help_panel or Panel.OWN), []).append(option)
        for name in sorted(panels, key=list(Panel).index):
            console.print(_box(name, [_row(option) for option in panels[name]]))


def _box(title: str, rows: list[tuple[str, str]]) -> Box:
    from rich.markup import escape
    from rich.panel import Panel as Box
    from rich.table import Table

    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(ratio=1)
    for left, right in rows:
        table.add_row(escape(left), right)
    return Box(table, title=title, title_align="left", border_style="dim")


def _row(option: TyperOption) -> tuple[str, str]:
    flag = next(name for name in option.opts if name.startswith("--"))
    if option.secondary_opts:
        flag = flag.replace("--", "--[no-]", 1)
    return (flag if option.is_flag else f"{flag} {option.metavar or 'VALUE'}"), option.help or ""

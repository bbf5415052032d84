"""A map of blocks as SVG: one path for each class, so that a large pool stays a small file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Final
from xml.sax.saxutils import escape

from quire.inspect.block_map import BlockMap

_WIDTH: Final = 960
_MARGIN: Final = 16
_LINE: Final = 20
# Of the largest cell, and the share of it that is not gap.
_MAX_CELL: Final = 28.0
_FILLED: Final = 0.86
# With more columns the gaps between blocks would be all that is seen.
MAX_COLUMNS_WITH_GAPS: Final = 200


def num_columns(num_blocks: int) -> int:
    """A picture twice as wide as it is high."""
    return max(1, math.ceil(math.sqrt(2 * num_blocks)))


def to_svg(block_map: BlockMap) -> str:
    """The document. Ids run from left to right and from top to bottom."""
    blocks, legend = block_map.blocks, block_map.legend
    columns = num_columns(len(blocks))
    cell = min(_MAX_CELL, (_WIDTH - 2 * _MARGIN) / columns)
    top = _MARGIN + _LINE + 8
    legend_top = top + math.ceil(len(blocks) / columns) * cell + _LINE
    height = legend_top + _LINE * len(legend) + _MARGIN
    title = escape(block_map.title)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{title}</title>",
        f'<rect width="{_WIDTH}" height="{height:.0f}" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN + 13}" font-weight="600" fill="#1b1f24">{title}</text>',
    ]
    for shown, _ in legend:
        runs = "".join(
            f"M{_MARGIN + column * cell:.2f} {top + row * cell:.2f}h{(length - 1 + _FILLED) * cell:.2f}"
            f"v{_FILLED * cell:.2f}h{-(length - 1 + _FILLED) * cell:.2f}z"
            for row, column, length in _runs([block is shown for block in blocks], columns)
        )
        parts.append(f'<path fill="{shown.colour}" d="{runs}"/>')
    if columns <= MAX_COLUMNS_WITH_GAPS:
        lines = "".join(
            f"M{_MARGIN + (column - (1 - _FILLED) / 2) * cell:.2f} {top}V{legend_top - _LINE:.2f}"
            for column in range(1, columns)
        )
        parts.append(f'<path stroke="#ffffff" stroke-width="{(1 - _FILLED) * cell:.2f}" d="{lines}"/>')
    for i, (shown, count) in enumerate(legend):
        y = legend_top + i * _LINE
        parts.append(f'<rect x="{_MARGIN}" y="{y:.2f}" width="12" height="12" fill="{shown.colour}"/>')
        parts.append(
            f'<text x="{_MARGIN + 20}" y="{y + 11:.2f}" fill="#1b1f24">{escape(shown.label)}: {count:,}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _runs(shown: list[bool], columns: int) -> Iterator[tuple[int, int, int]]:
    """Row, first column and length of each run of blocks side by side that are shown."""
    for start in range(0, len(shown), columns):
        column = 0
        for is_shown, group in groupby(shown[start : start + columns]):
            length = sum(1 for _ in group)
            if is_shown:
                yield start // columns, column, length
            column += length

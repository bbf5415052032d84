"""A map of blocks as PNG. matplotlib is an extra and imported here only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quire.bench.plot import open_pyplot, save_figure
from quire.inspect.block_map import BlockMap
from quire.inspect.svg import MAX_COLUMNS_WITH_GAPS, num_columns


def write_png(block_map: BlockMap, path: Path) -> None:
    """Draws what `to_svg` draws. Raises OSError."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    pyplot = open_pyplot()
    columns = num_columns(len(block_map.blocks))
    rows = -(-len(block_map.blocks) // columns)
    pixels = np.ones((rows * columns, 3))
    pixels[: len(block_map.blocks)] = [to_rgb(block.colour) for block in block_map.blocks]
    figure, axes = pyplot.subplots(figsize=(10, 6.5), layout="constrained")
    axes.imshow(pixels.reshape(rows, columns, 3), interpolation="nearest", aspect="auto")
    if columns <= MAX_COLUMNS_WITH_GAPS:
        axes.set_xticks(np.arange(columns) - 0.5, minor=True)
        axes.set_yticks(np.arange(rows) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(block_map.title, fontsize=10)
    patches = [Patch(color=shown.colour, label=f"{shown.label}: {count:,}") for shown, count in block_map.legend]
    figure.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)

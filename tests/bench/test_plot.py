"""The picture of a run; matplotlib is an extra, and its absence is said before anything runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from quire.bench.plot import plot_run, require_matplotlib
from quire.bench.timeline import Timeline
from quire.errors import StartupError

installed = find_spec("matplotlib") is not None


@pytest.mark.skipif(installed, reason="matplotlib is installed")
def test_without_the_extra_it_is_named():
    with pytest.raises(StartupError, match=r"quire\[bench\]"):
        require_matplotlib()


@pytest.mark.skipif(not installed, reason="needs the extra `bench`")
@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_a_picture_is_drawn(tmp_path: Path, suffix, begins):
    timelines = [
        Timeline(sent=i, prompt_len=4, arrived=[i + 0.5, i + 0.6, i + 0.8], output_len=4, ended=i + 0.8)
        for i in range(9)
    ]
    plot_run([*timelines, Timeline(sent=0, prompt_len=4, error="no")], tmp_path / f"run{suffix}", title="a run")
    assert (tmp_path / f"run{suffix}").read_bytes().startswith(begins)

"""Heartbeats in shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from quire.progress import ProgressPage, heartbeats


async def test_an_event_loop_that_runs_counts():
    with contextlib.closing(ProgressPage.create()) as page:
        with heartbeats(os.dup(page.fd)):
            before = page.beats
            async with asyncio.timeout(30):
                while page.beats < before + 2:
                    await asyncio.sleep(0.05)
        after = page.beats
        await asyncio.sleep(1)
        assert page.beats == after


async def test_without_a_page_there_is_nothing_to_do():
    with heartbeats(None):
        await asyncio.sleep(0)


def test_a_child_cannot_take_the_memory_away():
    """Reading a page behind the end of its file would end the supervisor (SIGBUS)."""
    with contextlib.closing(ProgressPage.create()) as page, pytest.raises(PermissionError):
        os.ftruncate(page.fd, 0)

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop
from support.gateway_fixtures import gateway, http, model_folder, module_scheduler, scheduler, tokenizer

__all__ = ["gateway", "http", "model_folder", "module_scheduler", "scheduler", "tokenizer"]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the processes run on."""
    return {"uvloop": uvloop.new_event_loop}

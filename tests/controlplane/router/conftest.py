"""The router runs on uvloop, and so do its tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import pytest_asyncio
import uvloop

from tests.controlplane.router.peer import close_all


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture(autouse=True)
async def no_connection_outlives_its_test() -> AsyncIterator[None]:
    """So that one failure is one failure: a loop with an open connection cannot be closed."""
    yield
    await close_all()

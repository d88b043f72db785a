import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
async def _no_loose_ends() -> AsyncIterator[None]:
    """Whatever asyncio would complain of, such as an error nobody looked at, fails the test."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    yield
    gc.collect()
    assert complaints == []

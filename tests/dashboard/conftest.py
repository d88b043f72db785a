"""A real Chromium."""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

from tests.conftest import IN_CI

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """The Chromium of this machine; skips where there is none, fails where CI promises one."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        reason = "there is no Chromium here: apt-get install chromium, or name one with CHROMIUM"
        if IN_CI:
            pytest.fail(f"CI must test the page in a real browser: {reason}")
        pytest.skip(reason)
    async with contextlib.AsyncExitStack() as stack:
        playwright = await stack.enter_async_context(async_playwright())
        # Containers run tests as root, where Chromium has no sandbox of its own; what it opens is ours.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = await playwright.chromium.launch(executable_path=path, args=arguments)
        stack.push_async_callback(browser.close)
        yield browser

"""The page in a real Chromium, with a real run behind it: seen, used from a keyboard, and looked at."""

import asyncio
import random
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from playwright.async_api import Browser, Page, expect

from llmos_stream.broker import MemoryBroker, Topics
from llmos_stream.config import Settings
from llmos_stream.dashboard.changes import difference
from llmos_stream.runtime import Shutdown
from llmos_stream.types import EventKind, Role
from tests.dashboard.aids import TOKEN, event, head, on_a_port, shown
from tests.dashboard.run import Run, running, waiting
from tests.dashboard.test_older import write_versions
from tests.federation import event as log_event

PICTURES = Path(__file__).parents[2] / "build" / "page"
WAIT_MS = 30_000
expect.set_options(timeout=WAIT_MS)

_MEASURES = """() => {
  const paints = performance.getEntriesByType("paint").map((entry) => [entry.name, Math.round(entry.startTime)]);
  const files = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const named = files.map((entry) => [new URL(entry.name).pathname, entry.transferSize, Math.round(entry.startTime)]);
  return { paints: Object.fromEntries(paints), files: named };
}"""
_IN_ITS_TABLE = """() => {
  const table = document.activeElement.closest(".scroll").getBoundingClientRect();
  const row = document.activeElement.closest("tr").getBoundingClientRect();
  return row.top >= table.top && row.bottom <= table.bottom;
}"""
_SAID_AND_DRAWN = """() => new Promise((done) => {
  const figure = document.querySelector("#charts figure");
  const plot = figure.querySelector(".plot");
  const seen = new Map();
  new MutationObserver(() => {
    const said = Number(/Version (\\d+)/.exec(figure.querySelector("p").textContent)[1]);
    seen.set(said, plot.data[0].x.at(-1));
    if (seen.size > 2) done([...seen]);
  }).observe(figure.querySelector("figcaption"), { childList: true, characterData: true, subtree: true });
})"""
_SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Watched:
    """A page, and what it should not have done."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.faults: list[str] = []
        page.on("console", lambda said: self._console(said.type, said.text))
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", lambda request: self._request(request.url, origin))

    def _console(self, kind: str, text: str) -> None:
        # An answer of 401 and a server that is gone are part of the tests.
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.faults.append(f"{kind}: {text}")

    def _request(self, url: str, origin: str) -> None:
        at = urlsplit(url)
        if at.scheme not in ("data", "blob") and f"{at.scheme}://{at.netloc}" != origin:
            self.faults.append(f"a request to {url}")


async def opened(browser: Browser, where: str, **context: Any) -> Watched:
    settings = {"viewport": {"width": 1280, "height": 900}, **context}
    watched = Watched(await (await browser.new_context(**settings)).new_page(), where)
    await watched.page.goto(f"{where}/")
    return watched


async def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    await page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    await page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


def tile(page: Page, name: str) -> Any:
    return page.locator("#tiles div", has=page.locator("dt", has_text=name)).locator("dd span")


async def _is_live(page: Page) -> None:
    await expect(page.locator("#status")).to_have_text("Training")
    await expect(page.locator("#connection")).to_contain_text("Live")
    before = int(await tile(page, "newest version").inner_text())
    await expect(tile(page, "newest version")).not_to_have_text(str(before))
    assert int(await tile(page, "newest version").inner_text()) > before
    await expect(page.locator("#charts .plot .scatterlayer path.js-line").first).to_be_visible()
    await expect(page.locator("#charts figure")).to_have_count(6)
    await expect(page.locator("#clients tbody tr")).to_have_count(4)
    await expect(page.locator("#sites table", has_text="sorts by it").locator("tbody tr")).to_have_count(4)
    together = page.locator("#sites table", has_text="Together").locator("tbody tr")
    await expect(together.locator("th")).to_have_text(["accuracy", "loss"])
    await expect(page.locator("#charts figure", has_text="On the sites' own data")).to_contain_text("has the worst")


async def _draws_what_it_says(page: Page) -> None:
    """The accuracy chart's words name the version up to which it is drawn, however fast versions come."""
    seen = await asyncio.wait_for(page.evaluate(_SAID_AND_DRAWN), WAIT_MS / 1000)
    assert [said for said, _ in seen] == [drawn for _, drawn in seen]


async def _is_measured(page: Page) -> None:
    """Tables come before charts: what is needed to read is small, and painted before Plotly is asked for."""
    found = await page.evaluate(_MEASURES)
    plotly = {name: (size, begun) for name, size, begun in found["files"] if "plotly" in name}
    ((size, begun),) = plotly.values()
    own = sum(size for name, size, _ in found["files"] if name not in plotly and not name.startswith("/api/"))
    painted = found["paints"]["first-contentful-paint"]
    figures = {"first_contentful_paint_ms": painted, "bytes_without_plotly": own, "bytes_of_plotly": size}
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / "figures.json").write_bytes(orjson.dumps(figures))
    print(figures)
    assert painted < begun
    assert own < 60_000
    assert size < 1_600_000


async def _is_used_from_a_keyboard(page: Page) -> None:
    await page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    await page.keyboard.press("Tab")
    skip = page.locator("a.skip")
    await expect(skip).to_be_focused()
    assert (await skip.bounding_box() or {"x": -1})["x"] >= 0
    await page.keyboard.press("Enter")
    await expect(page.locator("main")).to_be_focused()
    await page.locator("#versions tbody th button").first.focus()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Shift+Tab")
    assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    number = re.sub(r"\D", "", await page.evaluate("document.activeElement.textContent"))
    await page.keyboard.press("Enter")
    inside = page.locator("#versions tr.inside")
    await expect(inside.locator("caption")).to_contain_text(f"What version {number} was made of: 2 contributions")
    await expect(inside.locator("tbody tr")).to_have_count(2)
    assert re.search(r"weights SHA-256\s*[0-9a-f]{64}", await inside.inner_text())
    focused = page.locator("#versions tbody th button:focus")
    await expect(focused).to_have_attribute("aria-expanded", "true")
    # Newer versions come in above, and neither the row nor the focus nor its place on the screen is lost.
    await expect(page.locator("#versions tbody th button").first).not_to_have_text(re.compile(rf"^\D*{number}\b"))
    await expect(inside).to_have_count(1)
    assert number in await focused.inner_text()
    await expect(focused).to_be_in_viewport()
    assert await page.evaluate(_IN_ITS_TABLE)
    heading = page.locator("#clients thead th", has_text="updates")
    await heading.locator("button").focus()
    await page.keyboard.press("Space")
    await expect(heading).to_have_attribute("aria-sort", "descending")


async def _is_operated(page: Page, run: Run) -> None:
    said = page.locator("#said")
    await page.fill("#token", "a guess")
    await page.click("#pause")
    await expect(said).to_contain_text("the token is missing or wrong")
    await page.fill("#token", TOKEN)
    await page.click("#pause")
    await expect(page.locator("#status")).to_have_text("Paused")
    await expect(page.locator("#pause")).to_be_disabled()
    await page.click("#resume")
    await expect(page.locator("#status")).to_have_text("Training")
    await page.fill("#promote-version", "999999")
    await page.keyboard.press("Enter")
    await expect(said).to_contain_text("Refused: version 999999")
    await page.fill("#promote-version", "1")
    await page.keyboard.press("Enter")
    await expect(said).to_have_text("Version 1 is promoted.")
    await expect(page.locator("#tiles")).to_contain_text("version 1 is promoted")
    assert (await run.state())["headline"]["promoted"] == 1
    assert await page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


async def _is_finished(page: Page, run: Run) -> None:
    """A run is ended from the page, after a question."""
    page.once("dialog", lambda dialog: dialog.dismiss())
    await page.click("#finish")
    assert (await run.state())["headline"]["status"] == "training"
    page.once("dialog", lambda dialog: dialog.accept())
    await page.click("#finish")
    await expect(page.locator("#said")).to_have_text("The run has ended.")
    await expect(page.locator("#status")).to_contain_text("Finished")
    await expect(page.locator("#finish")).to_be_disabled()


@pytest.mark.timeout(300)
async def test_a_run_is_seen_live_and_operated(chromium: Browser) -> None:
    async with running() as run:
        await run.until_version(4)
        for offset in (7, 8):
            await run.refuse("a frame with <b>tags</b> in its head", offset)
        refused = {
            "client_id": "client-2",
            "sequence": 3,
            "reason": "not_finite",
            "detail": "the training has diverged",
        }
        await run.tell(log_event(EventKind.UPDATE_REJECTED, Role.CLIENT, **refused))
        watched = await opened(chromium, run.where)
        page = watched.page
        await _is_live(page)
        await _is_measured(page)
        await _draws_what_it_says(page)
        quarantine = page.locator("#quarantine")
        await expect(quarantine.locator("tbody tr").first).to_contain_text("malformed")
        await expect(quarantine).to_contain_text("0 / 8")
        await expect(quarantine).to_contain_text("partition / offset are of digits.updates")
        unsent = quarantine.locator("tbody tr", has_text="diverged")
        await expect(unsent.locator("td")).to_contain_text(["not sent", "client-2", "3", "not_finite"])
        await expect(quarantine).to_contain_text('<img src=x onerror="alert(1)">')
        assert await page.locator("img, #quarantine b").count() == 0
        await picture(page, "light")
        await _is_used_from_a_keyboard(page)
        light = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        await page.emulate_media(color_scheme="dark")
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        await picture(page, "dark")
        assert await page.evaluate(_SIDEWAYS) <= 0
        await page.emulate_media(color_scheme="light")
        await page.set_viewport_size({"width": 400, "height": 800})
        await expect(page.locator("#charts .plot svg.main-svg").first).to_be_visible()
        await picture(page, "narrow")
        assert await page.evaluate(_SIDEWAYS) <= 0
        await _is_operated(page, run)
        await picture(page, "operated")
        await _is_finished(page, run)
        assert watched.faults == []


async def test_it_says_when_the_server_is_gone_and_comes_back_by_itself(chromium: Browser) -> None:
    async with shown() as here:
        here.view.add_event(event(EventKind.VERSION_PUBLISHED, version=5))
        async with on_a_port(here, Shutdown()) as where:
            watched = await opened(chromium, where)
            page = watched.page
            await expect(tile(page, "newest version")).to_have_text("5")
        await expect(page.locator("#connection")).to_contain_text("has not answered since")
        await expect(tile(page, "newest version")).to_have_text("5")
    async with shown() as again:
        again.view.add_event(event(EventKind.VERSION_PUBLISHED, version=6))
        async with on_a_port(again, Shutdown(), urlsplit(where).port or 0):
            await expect(page.locator("#connection")).to_contain_text("Live")
            await expect(tile(page, "newest version")).to_have_text("6")
            assert watched.faults == []
            await page.close()


async def test_it_waits_for_the_broker_and_becomes_live_by_itself(chromium: Browser) -> None:
    async with waiting() as (where, answer):
        watched = await opened(chromium, where)
        page = watched.page
        await expect(page.locator("#status")).to_have_text("Waiting for the broker, which has not answered yet")
        await expect(page.locator("#connection")).to_contain_text("Live")
        await picture(page, "unreached")
        answer()
        await expect(page.locator("#status")).to_have_text("Waiting for the first version")
        assert watched.faults == []
        await page.close()


@pytest.mark.full
async def test_a_version_that_is_not_held_is_opened_by_its_number(chromium: Browser) -> None:
    broker = MemoryBroker()
    await broker.create_topics(Topics("trial").specs(Settings().topics))
    await write_versions(broker, "trial", range(30))
    async with shown(log=lambda: broker) as here, on_a_port(here, Shutdown()) as where:
        here.view.add_event(event(EventKind.VERSION_PUBLISHED, version=29))
        for number in range(25, 30):
            here.view.add_version(head(number), 0, number)
        watched = await opened(chromium, where)
        page, found = watched.page, watched.page.locator("#version-found")
        await page.get_by_label("An older version").fill("7")
        await page.keyboard.press("Enter")
        await expect(found.locator("caption")).to_contain_text("What version 7 was made of: 2 contributions")
        await expect(found.locator("tbody tr")).to_have_count(2)
        await expect(found.locator("tbody tr").first).to_contain_text("client-")
        await picture(page, "older")
        await page.get_by_label("An older version").fill("70")
        await page.keyboard.press("Enter")
        await expect(found).to_contain_text("version 70 is not in the log")
        assert await page.evaluate(_SIDEWAYS) <= 0
        assert watched.faults == []
        await page.close()


async def test_without_a_token_the_page_is_for_looking(chromium: Browser) -> None:
    async with shown(token=None) as here, on_a_port(here, Shutdown()) as where:
        watched = await opened(chromium, where, reduced_motion="reduce")
        await expect(watched.page.locator("#operator")).to_contain_text("LLMOS_DASHBOARD__TOKEN")
        assert await watched.page.locator("#operator button").count() == 0
        await expect(watched.page.locator("#status")).to_have_text("Waiting for the first version")
        assert watched.faults == []
        await watched.page.close()


@pytest.mark.full
async def test_a_large_federation_is_drawn_and_sorted(chromium: Browser) -> None:
    async with shown() as here, on_a_port(here, Shutdown()) as where:
        for index in range(998):
            fields = {
                "client_id": f"client-{index}",
                "sequence": 1,
                "staleness": index % 9,
                "weight": 1.0,
                "version": 1,
            }
            here.view.add_event(event(EventKind.UPDATE_FOLDED, index / 1000, **fields))
        for name in ("same\u202e", "same\u202d"):
            here.view.add_event(event(EventKind.CLIENT_JOINED, client_id=name))
        for number in range(1, 120):
            here.view.add_event(event(EventKind.VERSION_PUBLISHED, number / 10, version=number))
            here.view.add_version(head(number, clients=120), 0, number)
        watched = await opened(chromium, where, viewport={"width": 400, "height": 800})
        page, rows = watched.page, watched.page.locator("#clients tbody tr")
        await expect(rows).to_have_count(50)
        await page.click("#clients button.more")
        await expect(rows).to_have_count(1000)
        await expect(rows.filter(has_text="same\N{REPLACEMENT CHARACTER}")).to_have_count(2)
        here.view.add_event(event(EventKind.CLIENT_JOINED, client_id="one more"))
        await expect(page.locator("#clients")).to_contain_text("1 more counted together")
        assert (await rows.nth(2).locator("th").inner_text()).strip() == "client-2"
        await page.locator("#versions tbody th button").first.click()
        await expect(page.locator("#versions tr.inside tbody tr")).to_have_count(120)
        assert await page.evaluate(_SIDEWAYS) <= 0
        assert watched.faults == []
        await page.close()


@pytest.mark.parametrize("seed", [1])
async def test_the_browser_applies_changes_as_they_are_meant(chromium: Browser, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311

    def value(depth: int) -> Any:
        kind = draw.choice(["number", "text", "list", "rows", "object"][: 2 if depth == 0 else 5])
        if kind == "list":
            return [draw.randint(2, 4) for _ in range(draw.randint(0, 4))]
        if kind == "rows":
            return [{"id": draw.randint(2, 6), "of": value(depth - 1)} for _ in range(draw.randint(0, 4))]
        if kind == "object":
            return {name: value(depth - 1) for name in "xyz"}
        return draw.randint(2, 5) if kind == "number" else draw.choice(["a", "__proto__", "", None])

    cases: list[Any] = []
    while len(cases) < 400:
        old, new = value(3), value(3)
        if (change := difference(old, new)) is not None:
            cases.append([old, change, new])
    async with shown() as here, on_a_port(here, Shutdown()) as where:
        page = (await opened(chromium, where)).page
        wrong = await page.evaluate(
            """async (cases) => {
              const { apply } = await import("/static/patch.js");
              const told = (value) => JSON.stringify(value);
              return cases.filter(([old, change, made]) => told(apply(old, change)) !== told(made));
            }""",
            cases,
        )
        assert wrong == []
        await page.close()

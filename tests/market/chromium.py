"""Headless Chromium: contexts that hear every complaint of a page, and axe's opinion of it."""

from __future__ import annotations

import importlib.resources
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from tests._servers import program
from tests.market.harness import PASSWORD
from tests.market.window import Window

__all__ = ["DESK", "PHONE", "Visitor", "axe", "chromium"]

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}

STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]

EXPECTED = "the server responded with a status of"
"""Chromium reports every 4xx as an error of its own; a test that asks for one says so."""


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program("chromium"), args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


class Visitor:
    """One browser profile; `complaints` are console errors, violations of the policy, failed scripts."""

    def __init__(self, window: Window, context: BrowserContext) -> None:
        self.window = window
        self.context = context
        self.complaints: list[str] = []
        context.on("console", self._hear)
        context.on("weberror", lambda error: self.complaints.append(f"script: {error.error}"))

    @classmethod
    async def new(cls, window: Window, browser: Browser, **options: Any) -> Visitor:
        context = await browser.new_context(**{"viewport": DESK, "base_url": window.url} | options)
        context.set_default_timeout(30_000)
        return cls(window, context)

    async def open(self, path: str, *, expect: int = 200) -> Page:
        page = await self.context.new_page()
        await self.go(page, path, expect=expect)
        return page

    async def go(self, page: Page, path: str, *, expect: int = 200) -> None:
        response = await page.goto(path)
        assert response is not None
        assert response.status == expect, f"{path}: {response.status}"

    async def sign_in(self, name: str, then: str = "/") -> Page:
        page = await self.open(f"/sign-in?next={then}")
        await page.get_by_label("E-mail address").fill(f"{name.lower().replace(' ', '.')}@example.com")
        await page.get_by_label("Password").fill(PASSWORD)
        await page.locator("main").get_by_role("button", name="Sign in").click()
        await page.get_by_text("You are signed in.").wait_for()
        return page

    async def close(self) -> None:
        """Fails when a page complained."""
        await self.context.close()
        assert not self.complaints, self.complaints

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning") and EXPECTED not in message.text:
            self.complaints.append(f"{message.page.url if message.page else ''}: {message.text}")


def _source() -> str:
    return importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()


AXE = _source()


async def axe(page: Page) -> list[str]:
    """What is wrong with the page by WCAG 2.1 A and AA, with the elements."""
    await page.evaluate(AXE)
    found: list[dict[str, Any]] = await page.evaluate(
        "async (standards) => (await axe.run({runOnly: standards, resultTypes: ['violations']})).violations",
        STANDARDS,
    )
    return [
        f"{one['id']} ({one['help']}): {node['html'][:200]} {node.get('failureSummary', '')}"
        for one in found
        for node in one["nodes"]
    ]

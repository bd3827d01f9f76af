"""Pages of ours in a real browser; skips where there is no Chromium or no playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def open_report(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """A report whose charts are drawn, and a list that grows with all it says or asks for but itself."""
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    said: list[str] = []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-charts=drawn]")
        assert said.pop(0) == path.as_uri()
        yield page, said
        chromium.close()


def drawn_charts(page: Any) -> list[list[Any]]:
    """Each chart's id, and whether the page shows a drawing of it."""
    return page.eval_on_selector_all(".plot", "plots => plots.map(p => [p.id, !!p.querySelector('svg')])")

"""How the tests find things on the page. Nothing of this is promised by Streamlit, so all of it stands here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Download, Locator, Page, expect, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SOON = 30_000  # milliseconds; two busy cores
LATE = 180_000


@contextmanager
def browser() -> Iterator[Browser]:
    """Start the Chromium of this machine."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield started
        finally:
            started.close()


def open_page(page: Page, address: str) -> None:
    """Go to an address and wait for the page's script."""
    page.goto(address)
    ready(page)


def ready(page: Page) -> None:
    """Wait until no script runs; say nothing about what it drew."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=SOON)


def step(page: Page, name: str) -> Locator:
    """Return a step of the workbench: checkpoints, model, data, gate."""
    return page.locator(f".st-key-step-{name}")


def upload(page: Page, kind: str, *files: Path) -> None:
    """Give files to the uploader of a step (checkpoint or data); while the page is redrawn it is there twice."""
    uploader = page.get_by_label(f"Upload {kind} files")
    expect(uploader).to_have_count(1, timeout=SOON)
    uploader.set_input_files([str(each) for each in files])


def on_bench(page: Page, kind: str, text: str) -> Locator:
    """Return a chosen file of a step; for a moment the list before and the list after are both there."""
    return step(page, kind).locator("[data-tag]").filter(has_text=text).last


def use_mnist(page: Page, real: Path, examples: int) -> None:
    """Bring the real images of digits to the bench, and use so many of them."""
    files = [real / "mnist" / f"t10k-{each}-ubyte.gz" for each in ("images-idx3", "labels-idx1")]
    upload(page, "data", *files)
    for file in files:
        expect(on_bench(page, "data", file.name)).to_be_visible(timeout=SOON)
    ready(page)
    fill(page, "Examples", str(examples))
    press(page, "Use this data")


def fill(page: Page, label: str, value: str) -> None:
    """Write into a field."""
    field = page.get_by_label(label, exact=True).first
    field.fill(value)
    field.press("Tab")


def press(page: Page, name: str) -> None:
    """Press a button by its words."""
    page.get_by_role("button", name=name, exact=True).first.click()


def press_until(page: Page, name: str, outcome: Locator) -> None:
    """Press a button until what it should bring is there: a press while the page is redrawn can get lost."""
    for _ in range(3):
        ready(page)
        press(page, name)
        try:
            expect(outcome).to_be_visible(timeout=SOON)
        except AssertionError:
            continue
        return
    expect(outcome).to_be_visible(timeout=SOON)


def unfold(page: Page, words: str, outcome: Locator) -> None:
    """Open a folded part of the page: one that is redrawn just then folds again."""
    for _ in range(4):
        ready(page)
        page.get_by_text(words).first.click()
        try:
            expect(outcome).to_be_visible(timeout=SOON // 4)
        except AssertionError:
            continue
        return
    expect(outcome).to_be_visible(timeout=SOON)


def success(where: Page | Locator) -> Locator:
    """Return the green and blue boxes."""
    return where.get_by_test_id("stAlertContentSuccess").or_(where.get_by_test_id("stAlertContentInfo"))


def errors(where: Page | Locator) -> Locator:
    """Return the red boxes."""
    return where.get_by_test_id("stAlertContentError")


def figures(page: Page) -> Locator:
    """Return the plots that are drawn."""
    return page.locator(".js-plotly-plot .main-svg").first


def lines(plot: Locator) -> Locator:
    """Return the lines in a plot, one for each trace."""
    return plot.locator(".scatterlayer .trace .js-line")


def names(plot: Locator) -> list[str]:
    """Return what the legend of a plot says."""
    return [
        str(each) for each in plot.locator(".legend .legendtext").evaluate_all("all => all.map(e => e.textContent)")
    ]


def choose_row(table: Locator, row: int, height: int) -> None:
    """Choose a row of a table that is drawn on a canvas, by the box at its left end; height: of its rows, in pixels."""
    table.scroll_into_view_if_needed()
    box = table.bounding_box()
    assert box is not None
    table.page.mouse.click(box["x"] + 18, box["y"] + 36 + height * (row + 0.5))


def progress(page: Page) -> Locator:
    """Return the bars of work under way."""
    return page.get_by_test_id("stProgress").first


def download(page: Page, press_it: Callable[[], None]) -> Download:
    """Return what pressing a button downloads."""
    with page.expect_download(timeout=LATE) as caught:
        press_it()
    return caught.value

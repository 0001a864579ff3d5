"""Attribution in a real browser: a wrong prediction, three methods, the sanity check, exports, a pin, a change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests import ui
from tests.server import Server
from tests.test_browser import app, chromium, context, page, strange_nodes  # noqa: F401

pytestmark = pytest.mark.browser

PNG = b"\x89PNG\r\n\x1a\n"
ROW = 56  # pixels of a row of the gallery


@pytest.fixture(scope="module")
def digits(chromium: Browser, app: Server, real: Path) -> str:  # noqa: F811
    """Bring a real network and 1000 images to a bench; return the address of a page with it."""
    if not (real / "mnist-cnn" / "run1").is_dir():
        pytest.skip("the real training run is not on this machine")
    opened = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = opened.new_page()
    ui.open_page(tab, f"{app.url}/?bench=attribution")
    ui.upload(tab, "checkpoint", real / "mnist-cnn" / "run1" / "epoch-200.pt")
    expect(ui.success(ui.step(tab, "model")).first).to_contain_text("Conv2d", timeout=ui.LATE)
    ui.use_mnist(tab, real, 1000)
    expect(ui.step(tab, "gate")).to_contain_text("99.2 %", timeout=ui.LATE)
    opened.close()
    return f"{app.url}/{{}}?bench=attribution"


def also(page: Page, *methods: str) -> None:  # noqa: F811
    """Add methods by their titles."""
    for title in methods:
        field = page.get_by_role("combobox", name="Methods")
        field.click()
        field.press_sequentially(title)
        page.get_by_role("option", name=re.compile(rf"^{re.escape(title)} ·")).first.click()
        page.keyboard.press("Escape")
        ui.ready(page)


def worth(page: Page) -> Locator:  # noqa: F811
    """Return the heading of the table that judges the maps."""
    return page.get_by_role("heading", name="What each map is worth")


def test_from_a_wrong_prediction_to_a_pinned_panel(page: Page, digits: str, tmp_path: Path) -> None:  # noqa: F811
    ui.open_page(page, digits.format("attribution"))
    gallery = page.get_by_test_id("stDataFrame").first
    expect(gallery).to_be_visible(timeout=ui.LATE)  # the predictions have been made for it
    ui.ready(page)
    expect(page.get_by_text("8 examples match")).to_be_visible(timeout=ui.SOON)  # wrong of 1000: 99.2 % are right
    ui.choose_row(gallery, 2, ROW)
    expect(page.get_by_text(re.compile(r"row 659 \(as ticked\)"))).to_be_visible(timeout=ui.SOON)
    ui.ready(page)
    also(page, "Grad-CAM")
    page.get_by_text("Sanity check", exact=True).first.click()
    ui.ready(page)
    ui.press(page, "Run")
    page.wait_for_url("**run=*", timeout=ui.SOON)
    expect(worth(page)).to_be_visible(timeout=ui.LATE)
    ui.open_page(page, page.url)  # as its link shows it
    expect(worth(page)).to_be_visible(timeout=ui.LATE)
    ui.ready(page)
    metrics = page.get_by_test_id("stMetric")
    expect(metrics.filter(has_text="Maps")).to_contain_text("3 of 3 ok")
    expect(metrics.filter(has_text="Survive random weights")).to_contain_text("0 of 3")
    expect(metrics.filter(has_text=re.compile("^Prediction"))).to_contain_text(re.compile(r"%, label 2"))
    assert strange_nodes(page) == 0
    _taken_away(page, tmp_path)
    _pinned(page, digits)


def _taken_away(page: Page, folder: Path) -> None:  # noqa: F811
    ui.unfold(page, "Export this figure", page.get_by_role("button", name="PNG", exact=True).first)
    ui.press_until(page, "PNG", page.get_by_role("button", name="Save the PNG").first)
    ui.ready(page)
    ui.download(page, lambda: ui.press(page, "Save the PNG")).save_as(folder / "panel.png")
    assert (folder / "panel.png").read_bytes().startswith(PNG)
    ui.download(page, lambda: ui.press(page, "HTML")).save_as(folder / "panel.html")
    alone = page.context.browser.new_context(offline=True).new_page()  # type: ignore[union-attr]
    alone.goto((folder / "panel.html").as_uri())
    expect(ui.figures(alone)).to_be_visible(timeout=ui.SOON)
    expect(alone.locator(".js-plotly-plot .hm")).to_have_count(3, timeout=ui.SOON)
    alone.context.close()


def _pinned(page: Page, digits: str) -> None:  # noqa: F811
    said = "The 2 is taken for a 1 by its <b>foot</b>."
    ui.ready(page)
    ui.press_until(page, "Pin", page.get_by_role("button", name="Pin this figure", exact=True).first)
    ui.fill(page, "What it shows", said)
    ui.ready(page)
    ui.press(page, "Pin this figure")
    expect(page.get_by_role("button", name="Pinned (1)").first).to_be_visible(timeout=ui.SOON)
    ui.open_page(page, digits.format("reviews"))
    expect(page.get_by_text(said, exact=True)).to_be_visible(timeout=ui.SOON)
    expect(page.locator(".js-plotly-plot .hm")).to_have_count(3, timeout=ui.SOON)
    page.get_by_role("link", name="Open the run").click()
    expect(worth(page)).to_be_visible(timeout=ui.LATE)


def test_a_region_is_replaced_and_prediction_and_map_follow(page: Page, digits: str) -> None:  # noqa: F811
    ui.open_page(page, digits.format("attribution"))
    earlier = page.get_by_role("combobox", name=re.compile("Run$")).first
    expect(earlier).to_be_visible(timeout=ui.LATE)
    ui.ready(page)
    earlier.click()
    page.get_by_role("option", name=re.compile("^Attribution: epoch-200.pt")).first.click()
    expect(worth(page)).to_be_visible(timeout=ui.LATE)
    ui.ready(page)
    canvas = page.locator(".js-plotly-plot").filter(has=page.locator(".imagelayer image")).last
    ui.unfold(page, "Ask about another class, or change the example", page.get_by_text("Mark a region").first)
    ui.ready(page)
    canvas.scroll_into_view_if_needed()
    box = canvas.locator(".nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    expect(page.get_by_role("button", name="Replace and look again")).to_be_visible(timeout=ui.SOON)
    changed = page.get_by_text(re.compile(r"The examples were changed first: the pixels of rows \d+ to \d+"))
    ui.press_until(page, "Replace and look again", changed.or_(ui.progress(page)).first)
    expect(changed).to_be_visible(timeout=ui.LATE)
    expect(page.get_by_text(re.compile(r"predicted 1 \(\S+ %\) → predicted \d"))).to_be_visible(timeout=ui.SOON)
    expect(worth(page)).to_be_visible(timeout=ui.SOON)
    assert ui.errors(page).count() == 0

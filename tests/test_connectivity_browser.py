"""Two training runs in a real browser: matched, judged, joined by a curve that is cancelled and resumed, and merged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from probes.checkpoint import read_checkpoint
from tests import ui
from tests.server import Server
from tests.test_browser import app, chromium, context, page, strange_nodes  # noqa: F401

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pair(chromium: Browser, app: Server, real: Path, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: F811
    """Bring the ends of two real runs and 300 images to a bench; return the address of its pages."""
    if not (real / "mnist-cnn" / "run2").is_dir():
        pytest.skip("the real training runs are not on this machine")
    folder = tmp_path_factory.mktemp("runs")
    files = [folder / "first-run.pt", folder / "second-run.pt"]
    for number, file in enumerate(files, 1):
        file.write_bytes((real / "mnist-cnn" / f"run{number}" / "epoch-200.pt").read_bytes())
    opened = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = opened.new_page()
    ui.open_page(tab, f"{app.url}/?bench=pair")
    ui.upload(tab, "checkpoint", *files)
    for file in files:
        expect(ui.on_bench(tab, "checkpoints", file.name)).to_be_visible(timeout=ui.LATE)
    expect(ui.success(ui.step(tab, "model")).first).to_contain_text("Conv2d", timeout=ui.LATE)
    ui.use_mnist(tab, real, 300)
    expect(ui.step(tab, "gate")).to_contain_text("better than chance", timeout=ui.LATE)
    opened.close()
    return f"{app.url}/{{}}?bench=pair"


def choose(page: Page, label: str, value: str) -> None:  # noqa: F811
    """Choose in a select box by its label."""
    page.get_by_role("combobox", name=re.compile(f"{label}$")).first.click()
    page.get_by_role("option", name=value, exact=True).click()
    ui.ready(page)


def begin(page: Page) -> None:  # noqa: F811
    """Run what the form asks for, once it is whole."""
    ui.press(page, "Run")
    page.wait_for_url("**run=*", timeout=ui.SOON)


def test_two_runs_are_matched_judged_and_merged(
    page: Page, chromium: Browser, app: Server, pair: str, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    ui.open_page(page, pair.format("mode_connectivity"))
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled(timeout=ui.LATE)
    ui.ready(page)
    begin(page)
    verdict = page.locator(".st-key-verdict")
    expect(verdict).to_contain_text("one basin after a permutation of units", timeout=ui.LATE)
    expect(verdict).to_contain_text("restarts")
    expect(ui.figures(page)).to_be_visible(timeout=ui.LATE)
    ui.ready(page)
    assert strange_nodes(page) == 0
    ui.open_page(page, page.url)  # as its link shows it: nothing is redrawn any more
    expect(ui.figures(page)).to_be_visible(timeout=ui.LATE)
    make = page.get_by_role("button", name="Make this checkpoint", exact=True)
    ui.unfold(page, "Make a checkpoint of this", make)
    ui.press_until(page, "Make this checkpoint", page.get_by_role("button", name=re.compile(r"Download \(")))
    ui.ready(page)
    merged = tmp_path / "merged.safetensors"
    ui.download(page, lambda: page.get_by_role("button", name=re.compile(r"Download \(")).click()).save_as(merged)
    shapes = {name: each.shape for name, each in read_checkpoint(merged).tensors.items()}
    assert shapes["0.weight"] == (32, 1, 3, 3)
    opened = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = opened.new_page()
    ui.open_page(tab, f"{app.url}/?bench=merged")
    ui.upload(tab, "checkpoint", merged)
    expect(ui.on_bench(tab, "checkpoints", merged.name)).to_be_visible(timeout=ui.LATE)
    expect(ui.success(ui.step(tab, "model")).first).to_contain_text("Conv2d", timeout=ui.LATE)
    assert ui.errors(tab).count() == 0
    opened.close()


def test_a_curve_is_cancelled_and_goes_on_where_it_was(page: Page, pair: str) -> None:  # noqa: F811
    ui.open_page(page, pair.format("mode_connectivity"))
    ask = page.get_by_text("Ask again, with other options or checkpoints")
    run = page.get_by_role("button", name="Run", exact=True)
    expect(ask.or_(run).first).to_be_visible(timeout=ui.LATE)
    ui.ready(page)
    if not run.is_visible():
        ui.unfold(page, "Ask again, with other options or checkpoints", run)
    choose(page, "Curve", "bezier")
    ui.fill(page, "Epochs of the curve", "120")
    ui.ready(page)
    begin(page)
    expect(ui.progress(page)).to_contain_text(re.compile(r"epoch ([6-9]\d|1\d\d) of 120"), timeout=ui.LATE)
    ui.press(page, "Cancel")
    retry = page.get_by_role("button", name="Retry", exact=True)
    expect(retry).to_be_visible(timeout=ui.LATE)
    ui.ready(page)
    retry.click()
    training = re.compile(r"epoch (\d+) of 120")
    expect(ui.progress(page)).to_contain_text(training, timeout=ui.LATE)
    seen = training.search(ui.progress(page).inner_text())
    assert seen is None or int(seen[1]) > 30, "the curve began anew"
    verdict = page.locator(".st-key-verdict")
    expect(verdict).to_be_visible(timeout=ui.LATE)
    expect(verdict).to_contain_text("one basin after a permutation of units")
    drawn = page.get_by_test_id("stFullScreenFrame").filter(has_text=re.compile("curve", re.IGNORECASE))
    expect(drawn.first).to_be_visible(timeout=ui.SOON)

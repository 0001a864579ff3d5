"""A training run in a real browser: five checkpoints, what turned, what to check, and the whole run on one page."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests import ui
from tests.server import Server
from tests.test_browser import HOSTILE, app, chromium, context, page, strange_nodes  # noqa: F401

pytestmark = pytest.mark.browser

EPOCHS = (0, 50, 100, 150, 200)
KERNELS = ("0.weight", "3.weight", "7.weight")


@pytest.fixture(scope="module")
def series(chromium: Browser, app: Server, real: Path, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: F811
    """Bring the five checkpoints of a real run, one hostile by name, and 200 images to a bench; return its address."""
    if not (real / "mnist-cnn" / "run1").is_dir():
        pytest.skip("the real training run is not on this machine")
    files = [real / "mnist-cnn" / "run1" / f"epoch-{epoch:03}.pt" for epoch in EPOCHS]
    files[0] = tmp_path_factory.mktemp("hostile") / HOSTILE
    files[0].write_bytes((real / "mnist-cnn" / "run1" / "epoch-000.pt").read_bytes())
    opened = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = opened.new_page()
    ui.open_page(tab, f"{app.url}/?bench=series")
    ui.upload(tab, "checkpoint", *reversed(files))  # the order of uploading is not that of time
    for file in files:
        expect(ui.on_bench(tab, "checkpoints", file.name)).to_be_visible(timeout=ui.LATE)
    about = ui.step(tab, "checkpoints").get_by_text("Training run: 5 checkpoints, epoch 0 to 200 (from the files)")
    expect(about).to_be_visible(timeout=ui.LATE)
    expect(ui.success(ui.step(tab, "model")).first).to_contain_text("Conv2d", timeout=ui.LATE)
    ui.use_mnist(tab, real, 200)
    expect(ui.step(tab, "gate")).to_contain_text("epoch-200.pt", timeout=ui.LATE)  # the last in time is judged
    opened.close()
    return f"{app.url}/{{}}?bench=series"


def ask(page: Page, **options: str) -> None:  # noqa: F811
    """Fill the form of an analysis of the whole series and run it."""
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_visible(timeout=ui.LATE)
    ui.ready(page)
    for label, value in options.items():
        ui.fill(page, label.replace("_", " "), value)
        ui.ready(page)
    ui.press(page, "Run")
    page.wait_for_url("**run=*", timeout=ui.SOON)
    expect(ui.figures(page)).to_be_visible(timeout=ui.LATE)


def saved(page: Page, button: str, folder: Path) -> list[dict[str, str]]:  # noqa: F811
    """Press a button that downloads CSV; return its rows."""
    file = folder / "saved.csv"
    ui.download(page, lambda: ui.press(page, button)).save_as(file)
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_one_line_a_layer_and_its_numbers_as_csv(page: Page, series: str, tmp_path: Path) -> None:  # noqa: F811
    ui.open_page(page, series.format("layer_rotation"))
    ask(page)
    plot = page.locator(".js-plotly-plot").first
    expect(ui.lines(plot)).to_have_count(4)  # three layers, and their mean
    assert ui.names(plot)[:3] == list(KERNELS)
    assert strange_nodes(page) == 0
    expect(page.get_by_test_id("stMetricValue").first).to_contain_text("0.80")
    page.get_by_text("Export this figure").first.click()
    rows = saved(page, "CSV", tmp_path)
    assert len(rows) == len(KERNELS) * len(EPOCHS)
    final = {row["layer"]: float(row["rotation"]) for row in rows if row["checkpoint"] == "epoch-200.pt"}
    assert [round(final[layer], 3) for layer in KERNELS] == [0.553, 0.892, 0.977]  # shared/real/README.md


def test_an_example_to_check_is_looked_at_and_exported(page: Page, series: str, tmp_path: Path) -> None:  # noqa: F811
    ui.open_page(page, series.format("gradient_alignment"))
    ask(page, Examples_to_check="7")
    heading = page.get_by_role("heading", name="Examples to check")
    expect(heading).to_be_visible(timeout=ui.LATE)
    rows = saved(page, "Examples to check as CSV", tmp_path)
    assert len(rows) == 7
    alignments = [float(row["alignment"]) for row in rows]
    assert alignments == sorted(alignments)
    ui.ready(page)
    ui.choose_row(page.get_by_test_id("stDataFrame").first, 2, 44)
    example = page.locator(".st-key-example-one")
    expect(example).to_contain_text(f"Example {rows[2]['id']}", timeout=ui.SOON)
    expect(example).to_contain_text(f"Label: {rows[2]['label']}")
    assert strange_nodes(page) == 0
    expect(example.locator("img")).to_be_visible()
    assert example.locator("img").evaluate("image => image.naturalWidth") == 28 * (240 // 28)


def test_the_whole_run_on_one_axis_of_time(page: Page, series: str, tmp_path: Path) -> None:  # noqa: F811
    ui.open_page(page, series.format("training_run"))
    button = page.get_by_role("button", name="Measure what is missing")
    expect(button).to_be_visible(timeout=ui.LATE)
    ui.ready(page)
    page.get_by_role("button", name=re.compile("Remove Hessian spectrum")).click()
    ui.ready(page)
    button.click()
    plot = page.locator(".js-plotly-plot").first
    for axis in ("Loss", "Accuracy (%)", "Rotation 1", "Alignment", "Noise scale"):
        expect(plot.locator(".infolayer").filter(has_text=axis).first).to_be_visible(timeout=ui.LATE)
    expect(plot.locator(".scatterlayer .trace").first.locator(".point")).to_have_count(5, timeout=ui.LATE)
    expect(button).to_be_disabled(timeout=ui.LATE)  # nothing that was asked for is missing any more
    ui.ready(page)
    _hover(page)
    assert strange_nodes(page) == 0
    page.get_by_text("Export this figure").first.click()
    ui.ready(page)
    rows = saved(page, "CSV", tmp_path)
    assert {row["quantity"] for row in rows} >= {"loss", "accuracy", "mean rotation", "mean alignment", "noise scale"}
    assert sorted({float(row["epoch"]) for row in rows}) == list(EPOCHS)


def _hover(page: Page) -> None:  # noqa: F811
    """Point at the last time in one panel: what all of them say there is shown together."""
    last = page.locator(".js-plotly-plot .scatterlayer .trace").first.locator(".point").last
    last.scroll_into_view_if_needed()
    box = last.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] - 5, box["y"])
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    shown = page.locator(".js-plotly-plot .hoverlayer")
    for name in ("200", "loss", "accuracy", "mean rotation", "mean alignment"):
        expect(shown).to_contain_text(name, timeout=ui.SOON)

"""The app in a real browser, with a real worker: the main job from upload to export, and what breaks on the way."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from tests import ui
from tests.server import ROOT, Server, serve
from workspace.jobs import Jobs
from workspace.store import open_store

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)>[a](javascript:alert(1)) :red[b] $x$ https:evil.example.pt"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app and a worker on a workspace of their own."""
    workspace = tmp_path_factory.mktemp("workspace")
    command = [sys.executable, "-m", "workspace.worker", "--workspace", str(workspace), "--device", "cpu"]
    with (workspace / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield from serve(workspace)
        finally:
            worker.terminate()
            worker.wait(20)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with ui.browser() as started:
        yield started


@pytest.fixture
def context(chromium: Browser, app: Server) -> Iterator[BrowserContext]:
    """A fresh visitor; fails the test when the page reaches for another server, or breaks the security policy."""
    opened = chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    foreign: list[str] = []
    own = (app.url, app.url.replace("http", "ws"), "data:", "blob:")
    opened.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
    opened.on("dialog", lambda dialog: (foreign.append(f"dialog {dialog.message}"), dialog.dismiss()))
    opened.on("console", lambda said: foreign.append(said.text) if "Content Security" in said.text else None)
    yield opened
    opened.close()
    assert foreign == []


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def test_a_first_visit_may_begin_at_any_page(page: Page, app: Server) -> None:
    ui.open_page(page, f"{app.url}/jobs")
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible(timeout=ui.SOON)
    expect(page.get_by_role("link", name="Workbench")).to_be_visible()
    expect(page.get_by_role("link", name="Hessian spectrum")).to_be_visible()


def lay_out(page: Page, app: Server, real: Path, bench: str, weights: Path) -> None:
    """Bring a checkpoint of the CNN and some of the MNIST test set onto a bench, and pass the gate."""
    ui.open_page(page, f"{app.url}/?bench={bench}")
    ui.upload(page, "checkpoint", weights)
    expect(ui.on_bench(page, "checkpoints", weights.name)).to_be_visible(timeout=ui.SOON)
    expect(ui.success(ui.step(page, "model")).first).to_contain_text("Conv2d", timeout=ui.LATE)
    mnist = real / "mnist"
    ui.upload(page, "data", mnist / "t10k-images-idx3-ubyte.gz", mnist / "t10k-labels-idx1-ubyte.gz")
    expect(ui.on_bench(page, "data", "t10k-images")).to_be_visible(timeout=ui.SOON)
    expect(ui.on_bench(page, "data", "t10k-labels")).to_be_visible(timeout=ui.SOON)
    ui.ready(page)
    ui.fill(page, "Examples", "200")
    ui.press(page, "Use this data")
    expect(ui.step(page, "data")).to_contain_text("200 of 10 000 examples, each 1 × 28 × 28", timeout=ui.LATE)
    gate = ui.step(page, "gate")
    expect(gate.get_by_test_id("stMetricValue").nth(1)).to_contain_text("%", timeout=ui.LATE)


def ask(page: Page, **options: str) -> None:
    """Fill the form of the Hessian spectrum and run it."""
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_visible(timeout=ui.LATE)
    ui.ready(page)
    page.get_by_text("Advanced options").click()
    for label, value in options.items():
        ui.fill(page, label.replace("_", " "), value)
        ui.ready(page)
    ui.press(page, "Run")
    page.wait_for_url("**run=*", timeout=ui.SOON)


CHEAP = {
    "Largest_eigenvalues": "2",
    "Smallest_eigenvalues": "0",
    "Relative_tolerance": "0.01",
    "Random_vectors": "2",
    "Steps_per_vector": "4",
    "Trace_samples": "3",
}


def test_from_upload_to_figure_and_export(
    page: Page, context: BrowserContext, app: Server, real: Path, tmp_path: Path
) -> None:
    weights = tmp_path / HOSTILE  # a name that tries what it can, all the way
    weights.write_bytes((real / "mnist-cnn" / "run1" / "epoch-200.pt").read_bytes())
    lay_out(page, app, real, "main", weights)
    assert strange_nodes(page) == 0
    page.get_by_role("link", name="Go on: Hessian spectrum").click()
    ask(page, **CHEAP)
    expect(ui.progress(page).or_(ui.figures(page)).first).to_be_visible(timeout=ui.SOON)
    page.reload()  # in the middle: the run goes on
    second = context.new_page()
    ui.open_page(second, page.url)
    for tab in (page, second):
        expect(ui.figures(tab)).to_be_visible(timeout=ui.LATE)
        expect(tab.get_by_test_id("stMetricValue").first).to_contain_text("±")
    store = open_store(app.workspace)
    assert len([job for job in Jobs(store).list() if job.task == "analysis"]) == 1
    store.close()
    assert strange_nodes(page) == 0
    expect(page.get_by_text("<img src=x onerror=alert(1)>").first).to_be_attached()
    _export(page, tmp_path)


def _export(page: Page, folder: Path) -> None:
    page.get_by_text("Export this figure").first.click()
    html = ui.download(page, lambda: ui.press(page, "HTML"))
    html.save_as(folder / "figure.html")
    ui.press_until(page, "PNG", page.get_by_role("button", name="Save the PNG").first)
    picture = ui.download(page, lambda: ui.press(page, "Save the PNG"))
    picture.save_as(folder / "figure.png")
    image = Image.open(folder / "figure.png").convert("RGB")
    colours = image.getcolors(1 << 22) or []
    assert image.width >= 1000
    assert max(colours)[1] == (255, 255, 255) and any(blue > red + 60 for _, (red, _, blue) in colours)
    offline = page.context.browser
    assert offline is not None
    alone = offline.new_context(offline=True).new_page()
    alone.goto((folder / "figure.html").as_uri())
    expect(ui.figures(alone)).to_be_visible(timeout=ui.SOON)
    alone.context.close()


def test_the_real_resnet_passes_the_gate_and_gives_a_spectrum(page: Page, app: Server, real: Path) -> None:
    folder = real / "cifar10-resnet20"
    ui.open_page(page, f"{app.url}/?bench=resnet")
    ui.upload(page, "checkpoint", folder / "resnet20-12fca82f.th")
    expect(ui.success(ui.step(page, "model")).first).to_contain_text("ResNet-20", timeout=ui.LATE)
    ui.upload(page, "data", folder / "cifar10-train-1000.npz")
    expect(ui.on_bench(page, "data", "cifar10-train-1000")).to_be_visible(timeout=ui.SOON)
    ui.ready(page)
    for label, value in {
        "Examples": "32",
        "Mean": "0.485 0.456 0.406",
        "Standard deviation": "0.229 0.224 0.225",
    }.items():
        ui.fill(page, label, value)
    ui.press(page, "Use this data")
    expect(ui.step(page, "data")).to_contain_text("32 of 1 000 examples, each 3 × 32 × 32", timeout=ui.LATE)
    expect(ui.step(page, "gate")).to_contain_text("91.8 % stored", timeout=ui.LATE)
    page.get_by_role("link", name="Go on: Hessian spectrum").click()
    ask(page, **CHEAP | {"Largest_eigenvalues": "1", "Random_vectors": "1", "Trace_samples": "2"})
    expect(ui.figures(page)).to_be_visible(timeout=ui.LATE)
    expect(page.get_by_test_id("stMetricValue").first).to_contain_text("±")


def test_a_run_is_cancelled_and_retried(page: Page, app: Server, real: Path) -> None:
    lay_out(page, app, real, "cancel", real / "mnist-cnn" / "run1" / "epoch-200.pt")
    page.get_by_role("link", name="Go on: Hessian spectrum").click()
    ask(page, Largest_eigenvalues="50", Relative_tolerance="1e-8", Most_products="5000")
    ui.press(page, "Cancel")
    expect(page.get_by_role("button", name="Retry").first).to_be_visible(timeout=ui.SOON)
    expect(page.get_by_text("was cancelled").first).to_be_visible()
    ui.press(page, "Retry")
    expect(ui.progress(page)).to_be_visible(timeout=ui.SOON)
    ui.press(page, "Cancel")
    expect(page.get_by_role("button", name="Retry").first).to_be_visible(timeout=ui.SOON)


def test_an_upload_that_broke_goes_on_where_it_stopped(page: Page, app: Server, tmp_path: Path) -> None:
    content, sent, broken = os.urandom(18 << 20), [], True
    (tmp_path / "big.pt").write_bytes(content)

    def sometimes(route: Route) -> None:
        offset = int(route.request.url.rpartition("=")[2])
        if broken and offset >= 8 << 20:
            route.abort()
        else:
            sent.append(offset)
            route.continue_()

    page.route("**/upload/*offset=*", sometimes)
    ui.open_page(page, f"{app.url}/?bench=broken")
    ui.upload(page, "checkpoint", tmp_path / "big.pt")
    expect(page.get_by_role("button", name="Resume big.pt")).to_be_visible(timeout=ui.LATE)
    broken = False
    page.get_by_role("button", name="Resume big.pt").click()
    expect(ui.on_bench(page, "checkpoints", "big.pt")).to_be_visible(timeout=ui.SOON)
    assert sent == [0, 4 << 20, 8 << 20, 12 << 20, 16 << 20]
    store = open_store(app.workspace)
    assert store.path_of(hashlib.sha256(content).hexdigest()).read_bytes() == content
    store.close()


def test_a_cancelled_upload_leaves_nothing(page: Page, app: Server, tmp_path: Path) -> None:
    (tmp_path / "unwanted.pt").write_bytes(os.urandom(30 << 20))
    page.route("**/upload/*offset=8388608", lambda route: None)  # the third chunk never arrives
    ui.open_page(page, f"{app.url}/?bench=cancelled")
    ui.upload(page, "checkpoint", tmp_path / "unwanted.pt")
    expect(page.get_by_text("26 %")).to_be_visible(timeout=ui.SOON)
    page.get_by_role("button", name="Cancel unwanted.pt").click()
    expect(page.get_by_role("button", name="Cancel unwanted.pt")).to_have_count(0)
    expect(page.get_by_label("Upload of unwanted.pt")).to_have_count(0)
    page.wait_for_timeout(500)
    assert list((app.workspace / "uploads").iterdir()) == []


def test_a_hostile_name_does_nothing_on_any_page(page: Page, app: Server, tmp_path: Path) -> None:
    bad = tmp_path / HOSTILE
    bad.write_bytes(b"<html>no checkpoint</html>")
    ui.open_page(page, f"{app.url}/?bench=hostile")
    ui.upload(page, "checkpoint", bad)
    expect(ui.errors(page).first).to_contain_text("<img src=x onerror=alert(1)>[a](javascript:", timeout=ui.LATE)
    assert strange_nodes(page) == 0
    ui.open_page(page, f"{app.url}/jobs")
    expect(page.get_by_role("heading", name="Ended")).to_be_visible(timeout=ui.SOON)
    assert strange_nodes(page) == 0


def strange_nodes(page: Page) -> int:
    """Count what only a name that was taken for markup could have put there."""
    return page.locator("img[src=x], a[href^=javascript], a[href*=evil], .katex, [style*='color: red']").count()

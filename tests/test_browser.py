"""The app in a real browser, with a real worker: the main job from upload to export, and what breaks on the way."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from tests import ui
from tests.server import ROOT, Server, serve
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
    expect(ui.errors(page).first).to_contain_text(
        "<img src=x onerror=alert(1)>[a](javascript:alert(1))", timeout=ui.LATE
    )
    assert strange_nodes(page) == 0
    ui.open_page(page, f"{app.url}/jobs")
    expect(page.get_by_role("heading", name="Ended")).to_be_visible(timeout=ui.SOON)
    assert strange_nodes(page) == 0


def strange_nodes(page: Page) -> int:
    """Count what only a name that was taken for markup could have put there."""
    return page.locator("img[src=x], a[href^=javascript], a[href*=evil], .katex, [style*='color: red']").count()

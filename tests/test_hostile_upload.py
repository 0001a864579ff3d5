"""The corpus through the browser: each file gets its verdict on the page, and app, worker and disk are as before.

A hundred files by default, of every kind; FUZZ=2 or more uploads all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from corpus import CORPUS, check_words, lay_out, touched
from hostile.assemble import Case
from playwright.sync_api import Browser, Page, expect

from tests import ui
from tests.server import ROOT, Server, serve
from tests.test_browser import chromium  # noqa: F401
from workspace.jobs import Jobs
from workspace.store import open_store

pytestmark = pytest.mark.browser

ALL = int(os.environ.get("FUZZ", "1")) > 1
AT_ONCE = 30
MEGABYTES = 700  # of the app, which never opens a file
TORCH_OWN = re.compile(r"torchinductor_\w+")  # an empty folder that importing torch's compiler makes
TELLING = ("name-", "folder-", "clinic-", "inside-")
HOSTILE_NAMES = (
    "name-html", "name-markdown", "name-link", "name-formula", "safetensors-name-html", "safetensors-metadata-html",
    "pickle-hostile-facts-zip", "pickle-hostile-facts",
)  # fmt: skip
BY_OTHERS = ("clinic-empty.pt",)  # the uploader itself says that it is empty
NO_ZIP = ("folder-fifo-shard",)  # zip knows none


def chosen() -> list[Case]:
    """Choose what is uploaded: all, or every second of the telling ones and every seventh of the others."""
    wanted = [case for case in CORPUS if case.name not in (*BY_OTHERS, *NO_ZIP)]
    others = [case for case in wanted if not case.name.startswith(TELLING)]
    telling = [case for case in wanted if case not in others]
    kept = {case.name for case in (*others[::7], *telling[::2])}
    return [case for case in wanted if ALL or case.name in kept]


@dataclass
class Place:
    """A running app with its worker, and where both may write."""

    app: Server
    worker: subprocess.Popen[bytes]
    scratch: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    workspace, scratch = tmp_path_factory.mktemp("workspace"), tmp_path_factory.mktemp("scratch")
    command = [sys.executable, "-m", "workspace.worker", "--workspace", str(workspace), "--device", "cpu"]
    settled = {**os.environ, "TMPDIR": str(scratch)}
    with (workspace / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=settled)
        try:
            for app in serve(workspace, TMPDIR=str(scratch)):
                yield Place(app, worker, scratch)
        finally:
            worker.terminate()
            worker.wait(20)


@pytest.fixture
def page(chromium: Browser, place: Place) -> Iterator[Page]:  # noqa: F811
    """A page that must not open a dialog, nor ask another server for anything."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    foreign: list[str] = []
    own = (place.app.url, place.app.url.replace("http", "ws"), "data:", "blob:")
    context.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
    context.on("dialog", lambda dialog: (foreign.append(f"dialog {dialog.message}"), dialog.dismiss()))
    yield context.new_page()
    context.close()
    assert foreign == []


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def files(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Case, Path]]:
    """Return what is uploaded, by name: folders are zipped; of files with the same bytes only the first is taken."""
    cases, packed = {case.name: case for case in chosen()}, tmp_path_factory.mktemp("packed")
    found: dict[str, tuple[Case, Path]] = {}
    for name, path in lay_out(base, cases.values()).items():
        file = zipped(path, packed / f"{path.name}.zip") if path.is_dir() else path
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        found.setdefault(digest, (cases[name], file))
    return {case.name: (case, file) for case, file in found.values()}


def zipped(folder: Path, target: Path) -> Path:
    """Zip a folder as it is, links as links."""
    with zipfile.ZipFile(target, "w") as archive:
        for each in sorted(folder.rglob("*")):
            info = zipfile.ZipInfo(each.relative_to(folder.parent).as_posix())
            if each.is_symlink():
                info.external_attr = 0o120777 << 16
                archive.writestr(info, str(each.readlink()))
            elif each.is_file():
                archive.writestr(info, each.read_bytes())
    return target


def strange_nodes(page: Page) -> int:
    """Count what only a name that was taken for markup could have put there."""
    marks = "img[src=x], a[href^=javascript], a[href*=evil], iframe:not([title]), .katex, [style*='color: red']"
    inline = "Array.from(document.scripts).filter(each => /alert/.test(each.textContent)).length"
    return page.locator(marks).count() + int(page.evaluate(inline))


def settle(page: Page, place: Place, count: int) -> None:
    """Wait until all files of a bench have arrived and nothing of it waits or runs."""
    expect(ui.step(page, "checkpoints").locator("[data-tag]")).to_have_count(count, timeout=ui.LATE)
    store = open_store(place.app.workspace)
    with contextlib.closing(store):
        for _ in range(600):
            if not any(job.is_open for job in Jobs(store).list()):
                break
            page.wait_for_timeout(500)
    ui.ready(page)
    expect(page.get_by_test_id("stProgress")).to_have_count(0, timeout=ui.LATE)


def shown(boxes: list[str], file: Path) -> list[str]:
    return [text for text in boxes if file.name[:60] in text]


def test_every_file_gets_its_verdict_on_the_page(page: Page, place: Place, files: dict[str, tuple[Case, Path]]) -> None:
    assert len(files) >= 90
    wrong = []
    listed = list(files.values())
    for number, first in enumerate(range(0, len(listed), AT_ONCE)):
        some = listed[first : first + AT_ONCE]
        ui.open_page(page, f"{place.app.url}/?bench=batch-{number}")
        ui.upload(page, "checkpoint", *(file for _, file in some))
        settle(page, place, len(some))
        step = ui.step(page, "checkpoints")
        errors = ui.errors(step).all_inner_texts()
        warnings = step.get_by_test_id("stAlertContentWarning").all_inner_texts()
        for case, file in some:
            red, yellow = shown(errors, file), shown(warnings, file)
            verdict = "refused" if red else "warning" if yellow else "ok"
            if verdict != case.verdict or len(red) > 1:
                wrong.append(f"{case.name}: {verdict} instead of {case.verdict}: {red} {yellow}")
            elif case.verdict == "refused":
                check_words(case, file, " ".join(red[0].split()))
        assert strange_nodes(page) == 0
    assert wrong == []


def test_hostile_names_are_shown_as_what_they_are(page: Page, place: Place, base: Path) -> None:
    cases = [case for case in CORPUS if case.name in HOSTILE_NAMES]
    assert len(cases) >= 7
    for name, path in lay_out(base, cases).items():
        ui.open_page(page, f"{place.app.url}/?bench={name}")
        ui.upload(page, "checkpoint", path)
        settle(page, place, 1)
        page.get_by_text("Tensors, and what else the files say").click()
        opened = page.get_by_test_id("stExpanderDetails").get_by_text("sha256", exact=True)
        expect(opened.first).to_be_visible(timeout=ui.SOON)
        page.wait_for_timeout(300)
        assert strange_nodes(page) == 0, name
    ui.open_page(page, f"{place.app.url}/jobs")
    expect(page.get_by_role("heading", name="Ended")).to_be_visible(timeout=ui.SOON)
    assert strange_nodes(page) == 0


def test_afterwards_all_is_as_before(place: Place, base: Path, files: dict[str, tuple[Case, Path]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", place.app.port, timeout=10)
    connection.request("GET", "/health")
    assert json.load(connection.getresponse()) == {"app": "ok", "worker": "ok"}
    connection.close()
    assert place.worker.poll() is None and place.app.process.poll() is None
    assert [name for name, (case, _) in files.items() if touched(case, base / "corpus")] == []
    assert list((place.app.workspace / "uploads").iterdir()) == []
    assert [each.name for each in (place.app.workspace / "admitted").glob(".*")] == []
    left = [each.name for each in place.scratch.iterdir() if not TORCH_OWN.fullmatch(each.name) or any(each.iterdir())]
    assert left == []
    status = Path(f"/proc/{place.app.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < MEGABYTES

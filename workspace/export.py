"""Take a result away: pictures, pages, data, and a script that does it again.

Everything here is free of torch. Names that came from files are escaped for the place they are written to.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

from probes.errors import ProbeError
from workspace.references import files_of, reference

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from analyzers._base import Result

ImageFormat = Literal["png", "svg", "pdf"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FORMULA_STARTS = tuple("=+-@\t\r\0＝＋－＠")
STORED = re.compile(r"[0-9a-f]{64}")
PLOT_CONFIG = {"displaylogo": False, "toImageButtonOptions": {"format": "svg", "scale": 2}}


class ExportError(ProbeError):
    """A figure cannot be turned into the format asked for."""


def find_browser() -> str | None:
    """Return the path of a Chromium that can draw pictures, or None."""
    named = os.environ.get("BROWSER_PATH")
    return named if named and shutil.which(named) else next(filter(None, map(shutil.which, BROWSERS)), None)


def image_of(figure: go.Figure, format: ImageFormat, *, width: int = 1000, height: int = 0) -> bytes:
    """Draw a figure as PNG (twice the size in pixels), SVG or PDF; raise ExportError without a Chromium.

    height: 0 takes the figure's own, else 600.
    """
    if format not in IMAGE_FORMATS:
        raise ExportError(f"No picture format {format!r}; choose one of {', '.join(IMAGE_FORMATS)}.")
    browser = find_browser()
    if browser is None:
        raise ExportError(
            "No Chromium was found on the server, which draws PNG, SVG and PDF: install it (Debian: "
            "apt-get install chromium) or set BROWSER_PATH. The camera button of the plot, HTML and the "
            "data work without it."
        )
    os.environ["BROWSER_PATH"] = browser
    try:
        return bytes(figure.to_image(format=format, width=width, height=height or figure.layout.height or 600, scale=2))
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ExportError(f"Chromium ({browser}) could not draw the {format.upper()}: {first_line}") from error


def html_of(figure: go.Figure) -> bytes:
    """Return one self-contained page (UTF-8, some 5 MB: plotly.js is inside) that opens offline."""
    page: str = figure.to_html(include_plotlyjs=True, include_mathjax=False, full_html=True, config=PLOT_CONFIG)
    return page.encode()


def csv_of(table: pd.DataFrame) -> bytes:
    """Return UTF-8 CSV in which no text cell or heading can be taken for a formula."""
    text = table.select_dtypes(include=["object", "string"]).columns
    safe = table.assign().copy()
    for column in text:
        safe[column] = [as_cell(each) if isinstance(each, str) else each for each in table[column]]
    safe.columns = [as_cell(str(column)) for column in table.columns]
    return bytes(safe.to_csv(index=False, lineterminator="\r\n").encode())


def parquet_of(table: pd.DataFrame) -> bytes:
    """Return the table as Parquet."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def json_of(result: Result, figure: go.Figure | None = None) -> bytes:
    """Return the result with its card, and the figure in Plotly's JSON when one is given."""
    drawn = {} if figure is None else {"figure": json.loads(figure.to_json())}
    return json.dumps({**result.to_json(), **drawn}, indent=1, ensure_ascii=False).encode()


def as_cell(text: str) -> str:
    """Make a text safe as a cell of a spreadsheet: what starts like a formula gets an apostrophe in front."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def as_filename(text: str, default: str = "file") -> str:
    """Make a text safe as a file name: at most 100 letters, digits, `.`, `-`, `_`; no leading dot."""
    plain = unicodedata.normalize("NFKC", text)
    kept = re.sub(r"[^\w.\-]+", "_", plain).strip("._")
    return kept[-100:].strip("._") or default


def snippet_of(payload: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Write the Python script that repeats an analysis.

    payload: of the job (analyzer, options, checkpoints; model, data and loss where the analyzer needs them); names:
    sha256 -> the name that the file was uploaded under. Everything that came from outside stands in the script as a
    Python literal.
    """
    needs_objective = "data" in payload
    named = [sha for text in payload["checkpoints"] for sha in files_of(reference(text))]
    if needs_objective:
        named += [*payload["data"]["files"], payload["model"].get("folder", "")]
    files = sorted({each for each in named if STORED.fullmatch(each)})  # the rest are modules and paths of the server
    rows = "\n".join(f"    {sha!r}: Path({as_filename(names.get(sha, sha))!r})," for sha in files)
    literals = {name: repr(payload.get(name)) for name in ("model", "data", "loss")}
    return SNIPPET.format(
        imports=OBJECTIVE_IMPORTS if needs_objective else "",
        of="joined, own_of" if needs_objective else "joined",
        objective=OBJECTIVE.format(**literals, dtype=repr(payload["options"].get("dtype", "float32")))
        if needs_objective
        else "objective = None  # names and tensors are enough\n",
        analyzer=payload["analyzer"],
        name="".join(part.title() for part in payload["analyzer"].split("_")),
        files=rows,
        options=repr(dict(payload["options"])),
        checkpoints=repr(list(payload["checkpoints"])),
    )


SNIPPET = '''\
"""Repeat one run. Start it in Theodolite's folder: PYTHONPATH=. .venv/bin/python reproduce.py"""

from pathlib import Path

from analyzers._base import Quiet
from analyzers.{analyzer} import {name}
from probes.checkpoint import hash_file, read_checkpoint
{imports}from workspace.opened import {of}
from workspace.references import reference

# The files of the run by the sha256 that they had; put in where yours are.
FILES = {{
{files}
}}

for sha256, path in FILES.items():
    if hash_file(path) != sha256:
        raise SystemExit(f"{{path}} is not the file of the run: its sha256 is not {{sha256}}")

read = lambda sha256, weights: read_checkpoint(FILES[sha256], sha256=sha256, weights=weights)
checkpoints = tuple(joined(reference(text), read) for text in {checkpoints})
{objective}result = {name}(**{options}).run(objective, checkpoints, Quiet())
print(result.values)
for title, figure in result.figures().items():
    figure.write_html(f"{{title}}.html")
'''

OBJECTIVE_IMPORTS = """\
from probes.data import read_batches
from probes.objective import build_objective
from probes.specs import DataSpec, ModelSpec
"""

OBJECTIVE = """\
model = {model}
data = {data}
model["folder"] = str(FILES.get(model.get("folder", ""), model.get("folder", "")))
data["files"] = [str(FILES.get(each, each)) for each in data["files"]]
spec = ModelSpec.from_json(model)
own = own_of(spec, checkpoints[0])
brought = (own.context, own.tokenizer, own.vocabulary, own.classes, own.preprocessing)
batches = read_batches(DataSpec.from_json(data), {{}}, *brought)
objective = build_objective(spec, checkpoints[0], batches, {loss}, dtype={dtype})
"""

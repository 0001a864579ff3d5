"""Examples to check: the table, the pictures, and what leaves the app."""

from __future__ import annotations

import base64
import csv
import io

import numpy as np
from PIL import Image
from streamlit.testing.v1 import AppTest

from ui.examples import png_url, table_of
from ui.text import as_text
from workspace.export import csv_of

FOUND = [
    {"id": "=cmd()", "label": 3, "prediction": "cat", "loss": 0.5, "margin": -1.25, "alignment": -0.5, "text": None},
    {"id": "b", "label": 4, "prediction": "dog", "loss": 1.5, "margin": None, "alignment": 0.25, "text": None},
]


def test_the_table_has_the_usual_order_and_leaves_out_what_none_has() -> None:
    table = table_of(FOUND)
    assert list(table.columns) == ["id", "alignment", "label", "prediction", "loss", "margin"]
    assert table["label"].tolist() == ["3", "4"]
    assert table["loss"].tolist() == [0.5, 1.5]
    assert table["margin"].tolist()[0] == -1.25 and np.isnan(table["margin"].tolist()[1])


def test_the_csv_has_every_example_and_no_formula() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_of(table_of(FOUND)).decode(), newline="")))
    assert [row["id"] for row in rows] == ["'=cmd()", "b"]
    assert [float(row["alignment"]) for row in rows] == [-0.5, 0.25]


def test_a_picture_comes_back_pixel_by_pixel_and_larger_in_whole_steps() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)

    def decoded(url: str) -> np.ndarray:
        head, _, content = url.partition(",")
        assert head == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))

    assert (decoded(png_url(picture)) == picture).all()
    assert (decoded(png_url(picture, 30)) == picture.repeat(4, 0).repeat(4, 1)).all()


def test_a_text_is_shown_as_it_is_and_numbers_by_their_names() -> None:
    def closely() -> None:
        from ui.examples import _closely

        _closely(
            {"id": "<b>1", "label": "$x$", "loss": 0.123456, "margin": None, "text": "<i>once</i> :red[upon]"}, None
        )

    test = AppTest.from_function(closely).run()
    assert not test.exception
    assert test.code[0].value == "<i>once</i> :red[upon]"
    said = [each.value for each in test.markdown]
    assert said[0] == f"**Example {as_text('<b>1')}**"
    assert said[1] == f"Label: **{as_text('$x$')}**  \nLoss: **{as_text('0.1235')}**"

"""Examples that are changed before they are looked at: the edit is read, checked, and seen by model and map."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attribution_cases import objective_of

from analyzers._attribution_asked import Edit, edit_asked
from analyzers._base import Quiet
from analyzers.attribution import Attribution
from probes.attribution import AttributionError
from probes.errors import DataError

ONE = (SimpleNamespace(name="net.pt", sha256="0" * 64, facts={}),)


def run(net, **options):
    return Attribution(judge=False, dtype="float64", **options).run(objective_of(net), ONE, Quiet())


def test_edits_are_read():
    assert not edit_asked(" ") and edit_asked('{"mask": [[0, 1, 4, 5]]}') == Edit(mask=((0, 1, 4, 5),))
    assert edit_asked('{"tokens": {"3": 17}}').tokens == {3: 17}
    assert edit_asked('{"words": {"0": "x\\u00fc"}}').words == {0: "xü"}
    assert edit_asked('{"values": {"2": 0.5, "age": -1}}').values == {2: 0.5, "age": -1.0}


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "3", '{"mask": [[0, 0, 4]]}', '{"mask": [[4, 0, 4, 5]]}', '{"mask": [[0.5, 0, 4, 5]]}',
        '{"mask": 3}', '{"tokens": [1]}', '{"tokens": {"a": 1}}', '{"tokens": {"1": "a"}}', '{"words": {"1": 2}}',
        '{"values": {"1": NaN}}', '{"values": {"1": true}}', '{"other": 1}', '{"mask": [], "tokens": {}}',
    ],
)  # fmt: skip
def test_edits_that_are_none_are_named(text):
    with pytest.raises(DataError, match="edit"):
        edit_asked(text)


def test_a_masked_region_is_filled_and_its_picture_shows_it():
    plain = run("cnn", methods="input_x_gradient", target="0")
    masked = run("cnn", methods="input_x_gradient", target="0", edit='{"mask": [[2, 3, 6, 9]]}')
    assert np.all(masked.arrays["map_0"][0, 2:6, 3:9] == 0)  # filled by zeros, the baseline of images
    assert not np.array_equal(masked.arrays["map_0"], plain.arrays["map_0"])
    objective = objective_of("cnn")
    image = objective.inputs[:1].clone()
    image[..., 2:6, 3:9] = 0
    logits = objective.module.double()(image.double())[0]
    assert masked.values["cases"][0]["score"] == pytest.approx(float(logits[0].detach()), rel=1e-9)
    assert masked.values["prediction"] == int(logits.argmax())
    assert (masked.arrays["picture_0"][2:6, 3:9] == 0).all()
    assert np.array_equal(masked.arrays["picture_0"][7:], plain.arrays["picture_0"][7:])


def test_other_tokens_and_values():
    tokens = run("bert", methods="gradient", edit='{"tokens": {"3": 17}}').values["cases"][0]
    before = run("bert", methods="gradient").values["cases"][0]
    assert tokens["tokens"][3] == "17" and tokens["tokens"][:3] == before["tokens"][:3]
    assert tokens["score"] != before["score"]
    row = run("tabular", methods="gradient", edit='{"values": {"2": 0.5}}').values["cases"][0]
    expected = objective_of("tabular").inputs[0].clone()
    expected[2] = 0.5
    assert torch.allclose(torch.tensor(row["raw"], dtype=torch.float64), expected.double())


def test_an_edit_that_does_not_fit_the_example_is_refused():
    with pytest.raises(AttributionError, match="Only images have regions"):
        run("tabular", edit='{"mask": [[0, 0, 2, 2]]}')
    with pytest.raises(AttributionError, match="not within the image"):
        run("cnn", edit='{"mask": [[0, 0, 99, 2]]}')
    with pytest.raises(AttributionError):
        run("cnn", edit='{"tokens": {"3": 17}}')

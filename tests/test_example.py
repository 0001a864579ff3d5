"""The example's runs, judged by plain torch and scikit-learn's own digits."""

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load
from sklearn.datasets import load_digits
from torch import nn

from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.models import load_model, recognise
from probes.specs import DataSpec, ModelSpec
from workspace import example
from workspace.store import Store


class Ticks:
    """Remember what was reported and kept."""

    def __init__(self):
        self.reports, self.kept = [], {}

    def __call__(self, share, doing, seconds_left=None):
        self.reports.append((share, doing))

    def save(self, key, arrays):
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        self.kept[key] = buffer.getvalue()

    def load(self, key):
        return dict(np.load(io.BytesIO(self.kept[key]))) if key in self.kept else None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    store, ticks = Store(folder / "workspace"), Ticks()
    found = example.train(store, folder, ticks)
    yield store, found, ticks
    store.close()


def plain_module():
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 32, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def arrays_of(store, spec):
    with np.load(store.path_of(spec["files"][0])) as file:
        return file["images"], file["labels"]


def test_both_runs_read_more_than_95_percent_of_held_out_digits(trained):
    store, found, _ = trained
    images, labels = arrays_of(store, found["test_data"])
    final = [each for each in found["checkpoints"] if each["epoch"] == example.KEPT[-1]]
    assert len(final) == 2
    for each in final:
        module = plain_module()
        module.load_state_dict(load(store.path_of(each["sha256"]).read_bytes()))
        right = module(torch.from_numpy(images)).argmax(1).numpy() == labels
        assert right.mean() > 0.95
        stored = read_checkpoint(store.path_of(each["sha256"])).facts
        assert stored["metrics"]["test_accuracy"] == pytest.approx(right.mean(), abs=1e-6)
        assert stored["epoch"] == example.KEPT[-1]


def test_the_split_is_all_digits_once_in_zero_to_one(trained):
    store, found, _ = trained
    train, test = (arrays_of(store, found[each]) for each in ("data", "test_data"))
    images, labels = load_digits(return_X_y=True)
    both = np.concatenate([train[0], test[0]]).reshape(len(images), 64) * 16
    rows = {row.tobytes(): 0 for row in images.astype(np.float32)}
    for row in both.astype(np.float32):
        rows[row.tobytes()] += 1
    assert len(test[0]) == 397 and all(rows.values()) and len(both) == len(images)
    assert np.bincount(np.concatenate([train[1], test[1]])).tolist() == np.bincount(labels).tolist()
    assert train[0].dtype == np.float32 and train[0].min() == 0 and train[0].max() == 1


def test_what_is_handed_back_can_be_put_on_the_bench(trained):
    store, found, _ = trained
    assert json.loads(json.dumps(found)) == found
    last = found["checkpoints"][-1]
    assert last["name"] == "digits-run2-epoch40.safetensors" and last["run"] == 2
    assert store.file(last["sha256"]).name == last["name"]
    checkpoint = read_checkpoint(store.path_of(last["sha256"]), name=last["name"])
    spec = ModelSpec.from_json(found["model"])
    data = DataSpec.from_json(found["data"])
    path = str(store.path_of(data.files[0]))
    batches = read_batches(DataSpec((path,), format=data.format), {path: "digits-train.npz"})
    assert batches.ids[0] == "digits-train[0]" and batches.doubts == () and len(batches) == 1400
    outputs = load_model(spec, checkpoint)(batches.inputs)
    assert (outputs.argmax(1) == batches.targets).float().mean() > 0.99
    assert recognise(checkpoint).spec is not None
    assert 3000 < checkpoint.parameters < 8000


def test_runs_differ_and_begin_where_their_seed_says(trained):
    _, found, _ = trained
    assert len({each["sha256"] for each in found["checkpoints"]}) == 2 * len(example.KEPT)
    assert [each["epoch"] for each in found["checkpoints"]] == [*example.KEPT] * 2


def test_the_same_seed_gives_the_same_bytes(trained):
    _, found, _ = trained
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = example.train_once(example.load_digits(), example.SEEDS[0], lambda epoch: None)
    first, second = next(again), next(again)
    expected = [each["sha256"] for each in found["checkpoints"][:2]]
    assert [hashlib.sha256(each).hexdigest() for _, each in (first, second)] == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_rises_and_a_second_attempt_does_not_train_again(trained, monkeypatch):
    store, found, ticks = trained
    shares = [share for share, _ in ticks.reports]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 40
    monkeypatch.setattr(example, "train_once", lambda *_: pytest.fail("trained again"))
    assert example.train(store, store.root, ticks) == found
    assert torch.get_num_threads() == 1

"""What training scripts save comes back bit for bit, whatever lies beside it; its writers are the oracles."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile.assemble import VECTORS, torch_tar
from hostile.honest import VALUES, Net, net, omega, save, state, trained
from torch import nn

from probes.checkpoint import inspect, read_checkpoint

LAYOUTS = ("zip", "zip-3", "zip-4", "zip-5", "legacy", "legacy-1", "legacy-4", "legacy-5")
KEPT = [name for name, (_, verdict) in VALUES.items() if verdict != "refused"]


def weights_in(value: Any) -> dict[str, torch.Tensor]:
    """Find by hand the weights of what `honest` saves."""
    if isinstance(value, nn.Module):
        return dict(value.state_dict())
    for key in ("model", "state_dict", "checkpoint", "generator", "netG"):
        if isinstance(value.get(key), dict):
            return weights_in(value[key])
    return {name: each for name, each in value.items() if isinstance(each, torch.Tensor)}


def same(ours: torch.Tensor, theirs: Any) -> bool:
    theirs = torch.as_tensor(theirs).detach()
    bits = [each.contiguous().reshape(-1).view(torch.uint8) for each in (ours, theirs)]
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(*bits)


def compare(path: Path, expected: dict[str, Any], weights: str = "") -> None:
    """Compare names, order, types, shapes and bits; by the inspection and by the checkpoint."""
    found, read = inspect(path, weights=weights), read_checkpoint(path, weights=weights).load()
    assert [name for name, _, _ in found] == list(expected) == list(read)
    for name, shape, dtype in found:
        assert same(found.read(name), expected[name]), name
        assert same(read[name], expected[name]), name
        assert (shape, f"torch.{dtype}") == (tuple(expected[name].shape), str(torch.as_tensor(expected[name]).dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", KEPT)
def test_every_value_in_every_layout(name: str, layout: str, tmp_path: Path) -> None:
    value = VALUES[name][0]()
    save(value, tmp_path / "x", layout)
    compare(tmp_path / "x", weights_in(value))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "make", [state, net, lambda: {"state_dict": state(), "cfg": omega()}], ids=["dict", "module", "conf"]
)
def test_plain_pickles_of_tensors(make: Any, protocol: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(pickle.dumps(make(), protocol=protocol))
    compare(tmp_path / "x", weights_in(pickle.loads((tmp_path / "x").read_bytes())))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_arrays(protocol: int, tmp_path: Path) -> None:
    arrays = {
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big-endian": np.arange(4, dtype=">f4"),
        "view": np.arange(24, dtype=np.float64).reshape(4, 6)[1:3, ::2],
        "half": np.arange(3, dtype=np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5, np.float32),
        "flags": np.array([True, False]),
    }
    (tmp_path / "x").write_bytes(pickle.dumps({"params": arrays}, protocol=protocol))
    native = {name: np.ascontiguousarray(each).reshape(each.shape) for name, each in arrays.items()}
    native["big-endian"] = native["big-endian"].astype("<f4")
    compare(tmp_path / "x", native)


def test_what_was_left_behind_is_listed(tmp_path: Path) -> None:
    value = {"model": state(), **{name: VALUES[name][0]() for name in ("namespace", "dataclass", "enum", "omegaconf")}}
    save(value, tmp_path / "x", "zip")
    left = " ".join(read_checkpoint(tmp_path / "x").left)
    for name in ("argparse.Namespace", "honest.Config", "honest.Colour", "omegaconf"):
        assert name in left


def test_the_tar_of_torch_0_1(tmp_path: Path) -> None:
    path = torch_tar(tmp_path / "x", {"model": OrderedDict(VECTORS), "epoch": 3})
    compare(path, weights_in(torch.load(path, weights_only=False)))
    assert read_checkpoint(path).facts["epoch"] == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64])
def test_big_endian_files(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({"w": torch.arange(6).to(dtype).reshape(2, 3), "v": torch.ones(2)}, tmp_path / "little")
    width = {torch.complex64: 4}.get(dtype, dtype.itemsize)
    with zipfile.ZipFile(tmp_path / "little") as old, zipfile.ZipFile(tmp_path / "x", "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("byteorder"):
                content = b"big"
            elif "/data/" in info.filename:
                turned = width if info.filename.endswith("/0") else 4
                content = np.frombuffer(content, np.uint8).reshape(-1, turned)[:, ::-1].tobytes()
            new.writestr(info.filename, content)
    compare(tmp_path / "x", torch.load(tmp_path / "x", weights_only=True))


# Optimizers and averages


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "Adamax", "RMSprop", "Adagrad", "Adadelta", "NAdam", "SGD"])
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_the_moments_of_optimizers(kind: str, layout: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    more = {"momentum": 0.9} if kind == "SGD" else {"amsgrad": True} if kind in ("Adam", "AdamW") else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01, **more)
    for _ in range(2):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x", layout)
    checkpoint = read_checkpoint(tmp_path / "x")
    keys = {key for each in optimizer.state.values() for key, value in each.items() if value.dim()}
    assert set(checkpoint.moments) == keys & {
        "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "sum", "acc_delta",
    }  # fmt: skip
    assert checkpoint.moments
    for moment in checkpoint.moments:
        read = dict(checkpoint.stream_moments(moment))
        for name, parameter in model.named_parameters():
            assert same(read[name], optimizer.state[parameter][moment]), (moment, name)


def test_averages_by_torch_and_timm_are_sets_of_their_own(tmp_path: Path) -> None:
    from timm.utils import ModelEmaV3

    model, _ = trained()
    ema = ModelEmaV3(model, decay=0.5)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    with torch.no_grad():
        model.weight += 1  # type: ignore[operator]
    ema.update(model)
    averaged.update_parameters(model)
    value = {"state_dict": model.state_dict(), "state_dict_ema": ema.module.state_dict(), "swa": averaged.state_dict()}
    torch.save(value, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").sets[0] == "state_dict"
    compare(tmp_path / "x", dict(model.state_dict()))
    compare(tmp_path / "x", dict(ema.module.state_dict()), "state_dict_ema")
    compare(tmp_path / "x", dict(averaged.module.state_dict()), "swa")


# Lightning


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("how", ["plain", "averaged"])
def test_checkpoints_of_lightning(how: str, weights_only: bool, tmp_path: Path) -> None:
    import lightning
    from lightning.pytorch import callbacks

    class Module(lightning.LightningModule):
        def __init__(self, rate: float = 0.1, net: Any = None, conf: Any = None) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = Net()

        def training_step(self, batch: Any, _: int) -> Any:
            loss = self.model.fc(batch[0]).square().mean()
            self.log("val_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), self.hparams.rate)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(12, 8)), batch_size=4)
    more = {"plain": [], "averaged": [callbacks.EMAWeightAveraging()]}[how]
    stopping = [callbacks.EarlyStopping("val_loss"), callbacks.ModelCheckpoint(tmp_path / "kept", monitor="val_loss")]
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*stopping, *more], default_root_dir=tmp_path,
    )  # fmt: skip
    module = Module(conf=omega(), net=nn.Linear(2, 2))
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "x.ckpt", weights_only=weights_only)
    theirs = torch.load(tmp_path / "x.ckpt", weights_only=False)["state_dict"]
    read = read_checkpoint(tmp_path / "x.ckpt")
    loaded = read.load()
    assert len(loaded) == len(theirs)
    for (name, ours), (theirs_name, each) in zip(loaded.items(), theirs.items(), strict=True):
        assert theirs_name.endswith(name)
        assert same(ours, each)
    assert read.facts["epoch"] in (1, 2)
    assert read.facts["step"] == 6
    assert bool(read.moments) is not weights_only


def test_files_are_read_from_memory_of_any_writer(tmp_path: Path) -> None:
    """torch.save to a buffer names its folder "archive", to a file after the file."""
    buffer = io.BytesIO()
    torch.save(state(), buffer)
    (tmp_path / "größe 重み.pt").write_bytes(buffer.getvalue())
    compare(tmp_path / "größe 重み.pt", state())
    torch.save(state(), tmp_path / "größe 重み 2.pt")
    compare(tmp_path / "größe 重み 2.pt", state())

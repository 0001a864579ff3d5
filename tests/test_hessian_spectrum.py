"""The analyzer against dense float64 Hessians; its card, figures, tables, overlay and resuming."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, batches, cnn, dense_hessian, gpt, mlp
from scipy.stats import wasserstein_distance
from torch import nn

from analyzers._base import Quiet
from analyzers._figures import as_plotly
from analyzers._spectrum_figures import overlay
from analyzers.hessian_spectrum import HessianSpectrum, HessianSpectrumResult
from probes.errors import CurvatureError, ProbeError
from probes.objective import Objective

NETS = {"mlp": (mlp, "cross_entropy"), "cnn": (cnn, "cross_entropy"), "gpt": (gpt, "causal_lm")}
EXACTLY = HessianSpectrum(top=5, bottom=3, tolerance=1e-7, dtype="float64", steps=12, trace_probes=16)


@cache
def dense(name: str) -> np.ndarray:
    return dense_hessian(*NETS[name][0]())


def analyse(name: str, ask: HessianSpectrum = EXACTLY, micro_batch: int = 4) -> HessianSpectrumResult:
    make, loss = NETS[name]
    return ask.run(Objective.of(*make(), loss, micro_batch=micro_batch), (), Quiet())


@pytest.mark.parametrize("name", NETS)
def test_both_ends_trace_and_norm_agree_with_the_dense_hessian(name) -> None:
    truth = np.linalg.eigvalsh(dense(name))[::-1]
    found = analyse(name)
    values = found.values
    np.testing.assert_allclose(values["eigenvalues"], truth[:5], rtol=1e-6)
    np.testing.assert_allclose(values["eigenvalues_min"], truth[::-1][:3], rtol=1e-6)
    assert (np.abs(values["eigenvalues"] - truth[:5]) <= values["eigenvalue_residuals"]).all()
    assert values["not_converged"] == []
    assert abs(values["trace"] - truth.sum()) < 4 * values["trace_stderr"]
    assert abs(values["frobenius_norm"] - np.linalg.norm(truth)) < 4 * values["frobenius_norm_stderr"]
    exact = -truth[truth < 0].sum() / np.abs(truth).sum()
    assert values["negative_mass"] == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("name", NETS)
def test_density_lies_nearer_to_the_spectrum_than_plain_quadrature(name) -> None:
    H = dense(name)
    truth, size = np.linalg.eigvalsh(H), len(H)
    ask = HessianSpectrum(top=5, bottom=3, dtype="float64", probes=2, steps=24, trace_probes=2)
    found = analyse(name, ask)
    arrays, steps = found.arrays, found.values["products"] // 2
    known, share = arrays["outliers"], (size - len(arrays["outliers"])) / size / 2
    nodes = np.concatenate([known, arrays["nodes"].ravel()])
    weights = np.concatenate([np.full(len(known), 1 / size), share * arrays["weights"].ravel()])
    ours = wasserstein_distance(nodes, truth, weights)
    plain = [plain_quadrature(H, steps, seed) for seed in range(6)]
    pairs = [np.concatenate(each, 1) for each in zip(plain[::2], plain[1::2], strict=True)]
    theirs = np.median([wasserstein_distance(each[0], truth, each[1]) for each in pairs])
    assert ours < theirs
    assert ours < 0.25 * np.abs(truth).mean()


def plain_quadrature(H: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """Nodes and weights of Lanczos from a random sign vector, fully reorthogonalised; (2, steps)."""
    v = np.random.default_rng(seed).choice([-1.0, 1.0], len(H))
    Q = [v / np.linalg.norm(v)]
    for _ in range(steps - 1):
        w = H @ Q[-1]
        for _ in range(2):
            w = w - np.array(Q).T @ (np.array(Q) @ w)
        Q.append(w / np.linalg.norm(w))
    values, vectors = np.linalg.eigh(np.array(Q) @ H @ np.array(Q).T)
    return np.array([values, vectors[0] ** 2])


def test_the_answer_does_not_depend_on_the_micro_batch() -> None:
    a, b = analyse("gpt", micro_batch=1), analyse("gpt", micro_batch=5)
    np.testing.assert_allclose(a.values["eigenvalues"], b.values["eigenvalues"], rtol=1e-9)
    assert a.values["trace"] == pytest.approx(b.values["trace"], rel=1e-6)


def test_float32_agrees_within_its_bounds() -> None:
    truth = np.linalg.eigvalsh(dense("gpt"))[::-1]
    values = analyse("gpt", HessianSpectrum(top=5, bottom=3)).values
    assert (np.abs(values["eigenvalues"] - truth[:5]) <= np.array(values["eigenvalue_residuals"])).all()
    np.testing.assert_allclose(values["eigenvalues"], truth[:5], rtol=1e-4)


def test_the_same_question_has_the_same_answer_and_another_seed_another_estimate() -> None:
    a, b, c = analyse("mlp"), analyse("mlp"), analyse("mlp", HessianSpectrum(seed=1, dtype="float64"))
    assert a.to_json() == b.to_json()
    assert a.values["trace"] != c.values["trace"]
    assert c.card["seed"] == 1


def test_what_does_not_converge_is_named_and_not_drawn() -> None:
    found = analyse("gpt", HessianSpectrum(top=5, bottom=3, max_products=10, dtype="float64"))
    assert len(found.values["eigenvalues_min"]) < 3
    assert "did not converge within 10 products" in found.values["not_converged"][-1]
    assert found.values["not_converged"][-1] in found.caveats
    drawn = sum(len(trace.x) for trace in found.figures()["eigenvalues"].data)
    assert drawn == len(found.values["eigenvalues"]) + len(found.values["eigenvalues_min"])


def test_more_eigenvalues_than_parameters() -> None:
    net = nn.Linear(2, 2)
    objective = Objective.of(net, batches(torch.randn(9, 2), torch.randint(2, (9,))), "cross_entropy")
    found = HessianSpectrum(top=10, bottom=2, dtype="float64").run(objective, (), Quiet())
    truth = np.linalg.eigvalsh(dense_hessian(net, batches(objective.inputs, objective.targets)))[::-1]
    np.testing.assert_allclose(found.values["eigenvalues"], truth[:3], rtol=1e-9)
    assert found.values["trace"] == pytest.approx(truth.sum())
    assert "zero within rounding" in found.values["not_converged"][0]


def test_the_exact_oracle_is_drawn_against_the_estimate() -> None:
    found = analyse("mlp", HessianSpectrum(exact=True, dtype="float64"))
    truth = np.linalg.eigvalsh(dense("mlp"))[::-1]
    np.testing.assert_allclose(found.arrays["exact"], truth, atol=1e-12)
    assert found.values["exact_trace"] == pytest.approx(truth.sum())
    assert any("exact" in (trace.name or "") for trace in found.figures()["spectral_density"].data)


def test_a_wrong_model_is_refused_before_any_spectrum() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2 * ctx.saved_tensors[0].detach()

    class Square(nn.Module):
        def forward(self, x):
            return Wrong.apply(x)

    net = nn.Sequential(nn.Linear(3, 3), Square(), nn.Linear(3, 2))
    objective = Objective.of(net, batches(torch.randn(9, 3), torch.randint(2, (9,))), "cross_entropy")
    with pytest.raises(CurvatureError, match=r"`1` \(Square\)"):
        HessianSpectrum().run(objective, (), Quiet())


def test_a_killed_analysis_goes_on_with_the_same_answer() -> None:
    whole = Notes()
    make, loss = NETS["gpt"]
    ask = HessianSpectrum(top=5, bottom=3, dtype="float64", steps=10, trace_probes=8)
    expected = ask.run(Objective.of(*make(), loss), (), whole)
    notes = Notes(stop_after=60)
    with pytest.raises(KeyboardInterrupt):
        ask.run(Objective.of(*make(), loss), (), notes)
    notes.stop_after, before = None, len(notes.shares)
    again = ask.run(Objective.of(*make(), loss), (), notes)
    assert again.to_json() == expected.to_json()
    assert len(notes.shares) - before < len(whole.shares) - 40


def test_saved_and_read_again_it_draws_the_same(tmp_path: Path) -> None:
    found = analyse("cnn")
    found.save(tmp_path)
    again = HessianSpectrumResult.read(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["values"] == found.values
    assert {name: each.to_json() for name, each in again.figures().items()} == {
        name: each.to_json() for name, each in found.figures().items()
    }


def test_figures_and_tables_hold_what_was_found() -> None:
    found = analyse("cnn")
    figures, tables = found.figures(), found.tables()
    assert set(figures) == set(tables) == {"spectral_density", "eigenvalues"}
    for figure in figures.values():
        assert len(figure.to_json()) < 100_000
        assert all(len(trace.x) <= 2000 for trace in figure.data)
        assert figure.layout.template.layout.colorway
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text
        assert "n = 11 examples" in figure.layout.title.subtitle.text
    assert figures["spectral_density"].layout.yaxis.type == "log"
    density = tables["spectral_density"]
    for _, run in density[density.kind.str.startswith("random")].groupby("kind"):
        total = run.weight.sum() + density[density.kind == "converged"].weight.sum()
        assert total == pytest.approx(1)
    assert list(tables["eigenvalues"].eigenvalue[:5]) == found.values["eigenvalues"]


def test_smoothing_is_a_choice_of_the_view() -> None:
    found = analyse("cnn")
    narrow, wide = (found.figures(smoothing=each)["spectral_density"] for each in (0.002, 0.05))
    assert max(narrow.data[1].y[~np.isnan(narrow.data[1].y)]) > max(wide.data[1].y[~np.isnan(wide.data[1].y)])
    with pytest.raises(ValueError, match="smoothing"):
        found.figures(smoothing=0)


def test_overlay_refuses_different_cards_and_names_the_difference() -> None:
    a = analyse("cnn")
    assert len(overlay([a, a])["spectral_density_overlay"].data) == 2
    b = analyse("cnn", HessianSpectrum(seed=3))
    with pytest.raises(ProbeError, match=r"dtype: float64 against float32; seed: 0 against 3"):
        overlay([a, b])


def test_names_from_files_cannot_write_markup() -> None:
    assert as_plotly("<a href='x'>$y$ & %{x}</a>\n") == "&lt;a href='x'&gt;&#36;y&#36; &amp; %&#123;x}&lt;/a&gt;"
    found = analyse("mlp")
    card = dict(found.card) | {"model": "<b>x</b>", "checkpoint": {"name": "<img>$z$", "sha256": ""}}
    text = HessianSpectrumResult(found.analyzer, card, found.values, found.arrays).figures()["eigenvalues"].to_json()
    assert "<b>" not in text
    assert "\\u003cimg" not in text
    assert "<img" not in text


def test_values_are_plain_json() -> None:
    text = json.dumps(analyse("mlp").to_json(), allow_nan=False)
    keys = json.loads(text)["values"]
    wanted = {"eigenvalues", "eigenvalue_residuals", "eigenvalues_min", "trace", "trace_stderr", "frobenius_norm"}
    assert wanted | {"loss", "accuracy", "examples"} <= set(keys)

"""The analyzer of attributions: its maps are those of the methods, its numbers those of the judges, and it resumes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attribution_cases import objective_of, of_module
from captum.attr import Saliency
from curvature_oracles import batches
from series_runs import a_run, moved
from torch import nn

from analyzers._base import Quiet, Result
from analyzers.attribution import Attribution, AttributionResult
from probes.attribution import AttributionError, Target, attribute, case_of, methods
from probes.attribution.judging import curves, infidelity
from probes.objective import Objective
from probes.specs import ModelSpec

ONE = (SimpleNamespace(name="net.pt", sha256="0" * 64, facts={}),)
QUICK = {"judge": False, "dtype": "float64"}


class Keeps(Quiet):
    """A tick with a memory, which may be told to stop the run when so many maps have been kept."""

    def __init__(self, most=10**9):
        self.kept, self.most, self.shares, self.shown = {}, most, [], []

    def __call__(self, share, doing, seconds_left=None):
        self.shares.append(share)

    def save(self, key, arrays):
        self.kept[key] = {name: np.array(each) for name, each in arrays.items()}
        if sum(each.startswith("map-") for each in self.kept) >= self.most:
            raise KeyboardInterrupt

    def load(self, key):
        return self.kept.get(key)

    def show(self, result):
        self.shown.append(result)


def run(net, tick=None, **options):
    objective = objective_of(net) if isinstance(net, str) else net
    return Attribution(**{**QUICK, **options}).run(objective, ONE, tick or Quiet())


def test_a_map_is_that_of_the_method_and_of_captum():
    objective = objective_of("cnn")
    result = run(objective, methods="saliency,integrated_gradients", examples="2", target="1", judge=True)
    case = case_of(objective, 2, Target(1))
    found = attribute(case, "integrated_gradients")
    assert np.allclose(result.arrays["map_1"], found.values, atol=1e-7)
    saliency = Saliency(case.as_module()).attribute(case.features.clone().requires_grad_())[0]
    assert np.allclose(result.arrays["map_0"], saliency.detach().numpy(), atol=1e-7)
    about = result.values["maps"][1]
    assert about["score"] == pytest.approx(case.score) and about["completeness_error"] == found.completeness_error
    assert about["badge"] == found.badge.verdict and about["baseline"] == "zero"
    drawn = curves(case, found.values)
    assert result.values["insertion_auc"][1] == pytest.approx(drawn.insertion_auc[0])
    assert about["deletion_auc_second"] == pytest.approx(drawn.deletion_auc[1])
    assert np.allclose(result.arrays["deletion_1"], drawn.deletion)
    assert about["infidelity"] == pytest.approx(infidelity(case, found.values).value, rel=1e-5)
    assert about["sensitivity_max"] > 0 and about["random_insertion_auc_stderr"] > 0
    assert about["edge_insertion_auc"] is not None and np.allclose(result.arrays["curve_shares"], drawn.shares)


def test_promised_values_are_scalars_of_one_map_and_lists_of_more():
    one = run("tabular", methods="gradient").values
    promised = ("method", "target", "prediction", "completeness_error", "insertion_auc", "deletion_auc", "infidelity",
                "sensitivity_max")  # fmt: skip
    assert list(one)[: len(promised)] == list(promised) and one["method"] == "gradient"
    assert one["prediction"] == one["target"] == one["cases"][0]["prediction"]
    more = run("tabular", methods="gradient,lrp_epsilon", examples="0,3").values
    assert more["method"] == ["gradient", "lrp_epsilon"] * 2
    assert [each["case"] for each in more["maps"]] == [0, 0, 1, 1]
    assert [each["row"] for each in more["cases"]] == [0, 3] and more["kind"] == "table"
    assert len(more["cases"][0]["raw"]) == len(more["cases"][0]["columns"]) == 6
    json.dumps(more, allow_nan=False)


def test_a_linear_model_in_closed_form():
    weights = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
    linear = nn.Linear(3, 2)
    linear.weight.data, linear.bias.data = weights.float(), torch.zeros(2)
    case = of_module(nn.Sequential(linear), torch.tensor([1.0, 2.0, 3.0]))
    result = run(case.objective, methods="gradient,input_x_gradient", target="1")
    assert result.arrays["map_0"].tolist() == [0, 3, 1] and result.arrays["map_1"].tolist() == [0, 6, 3]
    assert result.values["cases"][0]["score"] == 9.0 and result.values["cases"][0]["prediction"] == 1
    assert result.values["cases"][0]["probability"] == pytest.approx(1 / (1 + np.exp(-1.5 - 9)))


def test_a_refusal_leaves_a_row_with_its_reason_and_the_run_goes_on():
    result = run("bert", methods="grad_cam,gradient,extremal")
    badges = [each["badge"] for each in result.values["maps"]]
    assert badges == ["refused", "ok", "refused"] and result.values["maps"][0]["array"] is None
    reason = methods()["grad_cam"].refuse(case_of(objective_of("bert"), 0))
    assert result.values["maps"][0]["reasons"] == [reason]
    assert any("2 of 3 maps could not be made" in each for each in result.caveats)
    alone = run("bert", methods="grad_cam")
    assert alone.values["method"] == "grad_cam" and alone.values["completeness_error"] is None
    assert alone.figures() and alone.tables()["maps"]["badge"].tolist() == ["refused"]


@pytest.mark.parametrize("text", ["gradiant", "gradient,,nothing", "", " , "])
def test_a_wrong_method_is_named_beside_all_there_are(text):
    with pytest.raises(AttributionError, match=r"integrated_gradients.*rise"):
        run("tabular", methods=text)
    with pytest.raises(AttributionError, match="areas are '2, x'"):
        run("tabular", areas="2, x")


def test_a_killed_run_goes_on_behind_the_last_map_and_gives_the_same():
    asked = {"methods": "gradient,smoothgrad,rise", "examples": "0,1", "judge": True, "samples": 6}
    whole = run("cnn", **asked)
    tick = Keeps(most=4)
    with pytest.raises(KeyboardInterrupt):
        run("cnn", tick, **asked)
    kept = {key: each for key, each in tick.kept.items() if key.startswith("map-")}
    assert len(kept) == 4
    tick.most, tick.shares = 10**9, []
    marked = next(key for key, each in kept.items() if 'smoothgrad"' in str(each["about"]))
    tick.kept[marked]["map"] = tick.kept[marked]["map"] + 1  # shows that it is read, not made again
    again = run("cnn", tick, **asked)
    assert again.values["method"] == whole.values["method"]
    for name, each in whole.arrays.items():
        shift = 1 if name == "map_1" else 0
        if not name.startswith("agreement"):
            assert np.allclose(again.arrays[name], each + shift, equal_nan=True), name
    assert tick.shares == sorted(tick.shares) and tick.shares[-1] <= 1


def test_maps_are_kept_by_content():
    x = torch.randn(4, 6)
    x[3] = x[0]
    objective = Objective(objective_of("tabular").module, batches(x, torch.zeros(4, dtype=torch.int64)),
                          "cross_entropy", dtype="float64", device="cpu")  # fmt: skip
    tick = Keeps()
    result = run(objective, tick, examples="0,3,1")
    assert len(tick.kept) == 2 and len(result.values["maps"]) == 3
    assert np.array_equal(result.arrays["map_0"], result.arrays["map_1"])
    run(objective, tick, examples="0,3,1", steps=8)
    run(objective, tick, examples="0", target="0")
    run(objective, tick, examples="0", target="1")
    assert len(tick.kept) == 5  # other settings, another target; one of them is the predicted one


def test_checkpoints_in_the_order_given_at_one_target(tmp_path):
    base = objective_of("tabular")
    objective, checkpoints = a_run(tmp_path, base.module, moved(base.module, 3, 0.5), base.batches, dtype="float64",
                                   device="cpu")  # fmt: skip
    order = (checkpoints[2], checkpoints[0], checkpoints[1])
    objective = objective.at(order[0])
    asked = Attribution(**QUICK, examples="1,4", methods="gradient")
    result = asked.run(objective, order, Quiet())
    cases = result.values["cases"]
    assert [each["checkpoint"] for each in cases] == [each.name for each in order for _ in range(2)]
    assert [each["row"] for each in cases] == [1, 4] * 3
    last = objective.at(order[2])
    targets = [case_of(last, row).target.index for row in (1, 4)]
    assert [each["target"] for each in cases] == targets * 3
    for number, each in enumerate(cases):
        at = objective.at(order[each["checkpoint_index"]])
        own = case_of(at, each["row"], Target(each["target"]))
        assert np.allclose(result.arrays[f"map_{number}"], attribute(own, "gradient").values, atol=1e-6)
    assert "times" not in result.values and {"run", "run_maps"} <= set(result.figures())
    table = result.tables()["run"]
    assert np.allclose(table.correlation_with_last[table.place == 2], 1) and len(table) == 6


def test_the_same_example_at_several_checkpoints_counts_once_in_intervals(tmp_path):
    base = objective_of("tabular", "float32")
    objective, checkpoints = a_run(tmp_path, base.module, moved(base.module, 3, 0.5), base.batches, dtype="float64",
                                   device="cpu")  # fmt: skip
    asked = Attribution(examples="1,4", methods="gradient,integrated_gradients", samples=2, dtype="float64")
    several = asked.run(objective, checkpoints, Quiet())
    last = asked.run(objective.at(checkpoints[-1]), checkpoints[-1:], Quiet())
    assert [each["n"] for each in several.values["scoreboard"]] == [2, 2]
    assert several.values["scoreboard"] == last.values["scoreboard"]
    assert np.array_equal(several.arrays["agreement"], last.arrays["agreement"])


def test_what_is_known_so_far_is_shown(monkeypatch):
    monkeypatch.setattr("analyzers._attribution_measure.SECONDS_BETWEEN_SHOWS", 0.0)
    monkeypatch.setattr("analyzers._attribution_measure.SHARE_OF_SHOWS", 0)
    tick = Keeps()
    whole = run("tabular", tick, methods="gradient,saliency", examples="0-2")
    assert [len(each.values["maps"]) for each in tick.shown] == [2, 4, 6]
    assert tick.shown[-1].values == whole.values and "maps" in tick.shown[0].figures()


def test_the_model_is_as_it_was_and_the_result_is_read_back(tmp_path):
    objective = objective_of("cnn")
    objective.module.train()
    before = [each.training for each in objective.module.modules()]
    state = {name: each.clone() for name, each in objective.module.state_dict().items()}
    needs = [each.requires_grad for each in objective.module.parameters()]
    result = run(objective, methods="gradient,deep_lift,grad_cam,occlusion", judge=True)
    assert [each.training for each in objective.module.modules()] == before
    assert [each.requires_grad for each in objective.module.parameters()] == needs
    assert all(torch.equal(each, state[name]) for name, each in objective.module.state_dict().items())
    assert not any(each._forward_hooks or each._backward_hooks for each in objective.module.modules())
    result.save(tmp_path)
    again = AttributionResult.read(tmp_path)
    assert isinstance(again, Result) and again.values == json.loads(json.dumps(result.values))
    assert list(again.figures()) == list(result.figures())


def test_an_answer_of_a_language_model_adds_up_over_its_tokens():
    result = run("gpt2", methods="integrated_gradients,occlusion", target="answer", position=4)
    case = result.values["cases"][0]
    matrix = result.arrays["token_matrix_0"]
    assert matrix.shape == (len(case["answer"]), 4) and case["answer_start"] == 4 and case["target"] == "answer"
    assert np.allclose(matrix.sum(0), result.arrays["map_0"], atol=1e-6)
    about = result.values["maps"][0]
    assert result.arrays["map_0"].sum() == pytest.approx(about["score"] - about["baseline_score"], abs=2e-3)
    objective = objective_of("gpt2")
    ids = objective.inputs[0]  # its targets are no next tokens, so the text ends with its own last token
    log = torch.log_softmax(objective.module.double()(ids[None, :-1]).detach()[0], -1)
    expected = sum(float(log[place - 1, ids[place]]) for place in range(4, len(ids)))
    assert about["score"] == pytest.approx(expected, abs=1e-5)


def test_a_token_at_a_position_is_the_target():
    result = run("gpt2", methods="gradient", target="label", position=3)
    objective = objective_of("gpt2")
    case = result.values["cases"][0]
    assert case["target"] == int(objective.targets[0, 3]) and case["position"] == 3 and len(case["tokens"]) == 4
    logits = objective.module.double()(objective.inputs[:1, :4]).detach()[0, -1]
    assert case["prediction"] == int(logits.argmax()) and case["top"][0]["index"] == case["prediction"]
    assert case["score"] == pytest.approx(float(torch.log_softmax(logits, -1)[case["target"]]), abs=1e-6)


def test_the_sanity_check_is_that_of_the_judge():
    from probes.attribution.judging import sanity

    result = run("tabular", methods="input_x_gradient", sanity=True)
    case = case_of(objective_of("tabular"), 0)
    expected = sanity(case, "input_x_gradient")
    assert result.values["sanity_layers"] == list(expected.layers)
    assert np.allclose(result.arrays["sanity_0"], expected.spearman)
    assert result.values["maps"][0]["sanity"] == expected.verdict and "sanity" in result.figures()


class Shares(Quiet):
    """A tick of a workspace with what other runs have shared."""

    def __init__(self):
        self.there, self.taken = {}, 0

    def share(self, key, arrays):
        self.there[key] = arrays

    def shared(self, key):
        self.taken += key in self.there
        return self.there.get(key)


def test_maps_of_earlier_runs_of_the_same_content_are_taken():
    objective, tick = objective_of("cnn"), Shares()
    objective.about["spec"] = ModelSpec("text", text="Sequential(...)")
    first = run(objective, tick, methods="saliency", examples="0", judge=True)
    assert len(tick.there) == 2 and not tick.taken  # the map and the random orders
    both = run(objective, tick, methods="occlusion,saliency", examples="1,0", judge=True)
    assert tick.taken == 2 and len(tick.there) == 6
    same = lambda each: {name: value for name, value in each.items() if name not in ("case", "array", "stderr")}
    assert same(both.values["maps"][3]) == same(first.values["maps"][0])
    assert np.array_equal(both.arrays["map_3"], first.arrays["map_0"])
    for changed in ({"seed": 1}, {"target": "1"}, {"dtype": "float32"}, {"samples": 9}):
        run(objective, tick, methods="saliency", examples="0", **{"judge": True, **changed})
    other = objective_of("cnn")
    other.about["spec"] = ModelSpec("text", text="Sequential(otherwise)")
    run(other, tick, methods="saliency", examples="0", judge=True)
    assert tick.taken == 2


def test_maps_of_models_whose_code_is_not_known_and_refusals_are_not_shared():
    objective, tick = objective_of("cnn"), Shares()
    for source in (None, "operator", "trusted"):
        objective.about["spec"] = source and ModelSpec(source, "shop:net")
        run(objective, tick, methods="saliency", examples="0")
    table = objective_of("tabular")
    table.about["spec"] = ModelSpec("text", text="Sequential(...)")
    refused = run(table, tick, methods="grad_cam", examples="0")
    assert refused.values["maps"][0]["badge"] == "refused" and not tick.there

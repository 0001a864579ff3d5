"""TracIn: inner products of gradients over the checkpoints of a run, against plain loops, Captum and a closed form."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_oracles import batches, gpt, mlp
from influence_cases import NETS, Coupled, OnlyBackward, OnlyOnce, With, loops, share
from series_runs import a_run, moved
from torch import nn

from probes.errors import ModelError, ObjectiveError
from probes.influence.products import chosen_parameters, gradient_of, products
from probes.influence.tracin import at_checkpoint, learning_rates, tracin
from probes.objective import Objective


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("micro_batch", [0, 4])
def test_products_are_those_of_a_plain_loop(name, micro_batch) -> None:
    net, loss = NETS[name]
    module, data = net()
    objective = Objective.of(module, data, loss, dtype="float64", micro_batch=micro_batch)
    places = chosen_parameters(objective)
    directions = [torch.randn(objective.size, dtype=torch.float64) for _ in range(2)]
    found = products(objective, [objective.like_theta(each) for each in directions], places)
    exact = loops(module, data, loss) @ torch.stack(directions, 1).numpy()
    np.testing.assert_allclose(found.values, exact, rtol=1e-9, atol=1e-12)
    assert not found.singly
    whole = objective.gradient().numpy()
    np.testing.assert_allclose(found.values.mean(0), [whole @ each.numpy() for each in directions], rtol=1e-9)


@pytest.mark.parametrize(("function", "singly"), [(OnlyBackward, False), (OnlyOnce, True)])
def test_products_without_forward_mode_are_the_same(function, singly) -> None:
    _, data = mlp()
    module = With(function)
    objective = Objective.of(module, data, "cross_entropy", dtype="float64", micro_batch=5)
    v = torch.randn(objective.size, dtype=torch.float64)
    found = products(objective, [objective.like_theta(v)], chosen_parameters(objective))
    np.testing.assert_allclose(found.values[:, 0], loops(module, data, "cross_entropy") @ v.numpy(), rtol=1e-8)
    assert found.singly == singly


def test_a_model_whose_examples_influence_each_other_is_refused() -> None:
    objective = Objective.of(Coupled(), mlp()[1], "cross_entropy")
    with pytest.raises(ObjectiveError, match="influence each other"):
        products(objective, [[torch.ones(3, 6), torch.ones(3)]], chosen_parameters(objective))


def test_parameters_are_chosen_by_name() -> None:
    objective = Objective.of(mlp()[0], mlp()[1], "cross_entropy")
    assert chosen_parameters(objective) == (0, 1, 2, 3, 4, 5)
    assert chosen_parameters(objective, "last") == (4, 5)
    assert chosen_parameters(objective, "0, 2.bias") == (0, 1, 3)
    with pytest.raises(ModelError, match="No parameter or layer is called 'fc'; the last ones are 0, 2, 4"):
        chosen_parameters(objective, "fc")
    tied = Objective.of(gpt()[0], gpt()[1], "causal_lm")
    assert [tied.names[each] for each in chosen_parameters(tied, "last")] == ["token.weight"]


def test_products_of_some_parameters_are_those_parts_of_the_loop() -> None:
    module, data = mlp()
    objective = Objective.of(module, data, "cross_entropy", dtype="float64")
    places = chosen_parameters(objective, "last")
    v = [torch.randn_like(objective.theta[place]) for place in places]
    flat = torch.cat([each.flatten() for each in v]).detach().numpy()
    exact = loops(module, data, "cross_entropy")[:, -len(flat) :] @ flat
    np.testing.assert_allclose(products(objective, [v], places).values[:, 0], exact, rtol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_tracin_is_the_sum_over_the_checkpoints(tmp_path, name) -> None:
    net, loss = NETS[name]
    module, data = net()
    states, rates = moved(module, 3), (0.3, 0.1, 0.02)
    objective, checkpoints = a_run(tmp_path, module, states, data, loss, dtype="float64")
    exact = 0.0
    for state, rate in zip(states, rates, strict=True):
        other = copy.deepcopy(module)
        other.load_state_dict(state)
        gradients = loops(other, data, loss)
        own = gradients[[1, 3]] * np.array([share(data, row) for row in (1, 3)])[:, None]
        exact = exact + rate * gradients @ own.T
    found = tracin((objective.at(each) for each in checkpoints), [1, 3], rates)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-9)


def test_tracin_of_a_linear_model_in_closed_form() -> None:
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64)
    net = nn.Linear(4, 1, bias=False).double()
    objective = Objective.of(net, batches(x.float(), y.float()), "mse", dtype="float64")
    x, y = x.float().double(), y.float().double()
    residuals = 2 * (x @ objective.theta[0].detach().T - y)[:, 0]
    exact = (residuals[:, None] * residuals) * (x @ x.T)
    found = at_checkpoint(objective, objective, range(9), chosen_parameters(objective)).values
    np.testing.assert_allclose(found, exact.numpy(), rtol=1e-9)


def test_the_example_may_come_from_test_data() -> None:
    module, data = mlp()
    test = batches(torch.randn(4, 6), torch.tensor([0, 2, 1, 1]))
    objective = Objective.of(module, data, "cross_entropy", dtype="float64").with_test(test)
    found = at_checkpoint(objective, objective.on_test(), [2], chosen_parameters(objective)).values[:, 0]
    exact = loops(module, data, "cross_entropy") @ loops(module, test, "cross_entropy")[2]
    np.testing.assert_allclose(found, exact, rtol=1e-8)


def test_tracin_is_captums(tmp_path) -> None:
    from captum.influence import TracInCP

    module, data = mlp()
    states = moved(module, 3)
    objective, checkpoints = a_run(tmp_path, module, states, data)
    paths = []
    for place, state in enumerate(states):
        torch.save(state, tmp_path / f"captum-{place}.pt")
        paths.append(str(tmp_path / f"captum-{place}.pt"))

    def load(net, path):
        net.load_state_dict(torch.load(path, weights_only=True))
        return 0.1

    net = copy.deepcopy(module)
    net.eval()
    pairs = torch.utils.data.TensorDataset(data.inputs, data.targets)
    theirs = TracInCP(net, pairs, paths, load, loss_fn=nn.CrossEntropyLoss(reduction="none"), batch_size=4)
    exact = theirs.influence((data.inputs[2:5], data.targets[2:5])).T
    found = tracin((objective.at(each) for each in checkpoints), [2, 3, 4], [0.1] * 3)
    np.testing.assert_allclose(found, exact.numpy(), rtol=1e-3, atol=1e-6)


def test_learning_rates_are_one_or_one_for_each_checkpoint() -> None:
    assert learning_rates("", 3) == (1.0, 1.0, 1.0)
    assert learning_rates("0.1", 2) == (0.1, 0.1)
    assert learning_rates("0.1, 0.01", 2) == (0.1, 0.01)
    for text, words in (("0.1 0.2", "2 learning rates for 3"), ("fast", "'fast'"), ("-1", "'-1'"), ("nan", "'nan'")):
        with pytest.raises(ObjectiveError, match=words):
            learning_rates(text, 3)


def test_the_gradient_of_one_example_is_of_its_mean_and_leaves_the_model_as_it_was() -> None:
    module, data = gpt()
    objective = Objective.of(module, data, "causal_lm", dtype="float64")
    before = {name: each.clone() for name, each in objective.module.state_dict().items()}
    needs = [each.requires_grad for each in objective.module.parameters()]
    found = torch.cat([each.flatten() for each in gradient_of(objective, 1, chosen_parameters(objective))])
    np.testing.assert_allclose(found, loops(module, data, "causal_lm")[1] * share(data, 1), rtol=1e-8, atol=1e-12)
    assert all(torch.equal(before[name], each) for name, each in objective.module.state_dict().items())
    assert [each.requires_grad for each in objective.module.parameters()] == needs
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in objective.module.modules())
    assert not objective.module.training

"""Model, loss and examples as one function of the parameters: theta -> mean loss, every example weighing the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from probes.cards import card_of, named
from probes.errors import ObjectiveError
from probes.fitting import fit, gradients, not_finite
from probes.losses import Evaluation, Tally, counted, evaluation, joined, tally, total_loss
from probes.memory import device_name, device_named, graph_bytes, is_out_of_memory, spare_bytes
from probes.own_loss import OwnLoss, built_in, own_loss_of
from probes.specs import LossName, ModelSpec
from probes.strict import strict

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    from probes.checkpoint import Checkpoint
    from probes.data import Batches

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
LARGEST_PART, ON_CPU = 512, 2**28  # an automatic micro-batch: examples; bytes of graph on a CPU, for its caches


class Objective:
    """The mean loss of a model on finite examples, as a function of its parameters.

    theta: leaf tensors in the order of `names` (a tied parameter once). constants: buffers and whole-number
    parameters by name. The module is never written to: parameters are passed in. Every example (every predicted token
    of a language model) weighs the same, whatever the micro-batch.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Batches,
        loss: LossName,
        *,
        device: str = "auto",
        dtype: str = "float32",
        micro_batch: int = 0,
        about: dict[str, Any] | None = None,
        own: OwnLoss | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
        self.module = getattr(module, "_orig_mod", module).eval()
        self.batches, self.loss, self.about, self.own = batches, loss, dict(about or {}), own or built_in(loss)
        self.load: Callable[[Checkpoint], nn.Module] | None = None  # puts another checkpoint into the same model
        self._test: Objective | None = None
        self.device = device_named(device)
        self.dtype = DTYPES[dtype]
        if self.own is not None:
            fitted = self.own.fit(self.module, self._as_floats(), batches.inputs, batches.targets)
        else:
            fitted = fit(self.module, self._on_cpu, batches.inputs, batches.targets, loss)
        self.caveats: list[str] = [*batches.doubts, *fitted.caveats]
        self._place(fitted.inputs, fitted.targets)
        self.micro_batch = 1
        self.micro_batch = min(micro_batch or self.in_memory(self._automatic), len(self.inputs))

    @classmethod
    def of(cls, module: nn.Module, batches: Batches, loss: LossName, **options: Any) -> Objective:
        """Make an objective of a module in memory; a copy is taken, the module stays as it is."""
        return cls(copy.deepcopy(module), batches, loss, **options)

    @property
    def size(self) -> int:
        """The number of parameters P."""
        return sum(each.numel() for each in self.theta)

    def parts(self) -> Iterator[slice]:
        """Yield the micro-batches as slices of the examples."""
        for start in range(0, len(self.inputs), self.micro_batch):
            yield slice(start, min(start + self.micro_batch, len(self.inputs)))

    def outputs(self, theta: list[Tensor], part: slice) -> Tensor:
        """Run the model with these parameters on a micro-batch; call it inside `strict()`."""
        return functional_call(self.module, self._values(theta), (self.inputs[part].to(self.device),))  # type: ignore[no-any-return]

    def part_loss(self, theta: list[Tensor], part: slice) -> Tensor:
        """Return the share of a micro-batch in the mean loss: the parts' shares add up to the loss."""
        if self.own is not None:
            return self.own.total(self.module, self._values(theta), self._batch(part)) / self.units
        return total_loss(self.loss, self.outputs(theta, part), self.targets[part].to(self.device)) / self.units

    def evaluate(self, tick: Callable[[float, str], None] | None = None) -> Evaluation:
        """Return loss and accuracy with standard errors; raise ObjectiveError naming the layer if not finite."""
        return evaluation(self.loss, self.in_memory(lambda: self._tallies(tick)), self.targets)

    def example_losses(self, tick: Callable[[float, str], None] | None = None) -> NDArray[float64]:
        """Return the loss of each example, summed over its units, (N,); raise ObjectiveError as `evaluate` does."""
        return self.tallied(tick).losses.cpu().numpy()  # type: ignore[no-any-return]

    def tallied(self, tick: Callable[[float, str], None] | None = None, *, finite: bool = True) -> Tally:
        """Return count, loss and right answers of each example, each (N,).

        finite: raise ObjectiveError, as `evaluate` does, where a loss is not finite; else such losses are given back.
        """
        return joined(self.in_memory(lambda: self._tallies(tick, finite=finite)))

    def gradient(self, theta: list[Tensor] | None = None) -> Tensor:
        """Return the gradient of the mean loss, flat (P,), at `theta` or at the checkpoint's own parameters."""
        return self.in_memory(lambda: self._gradient(self.theta if theta is None else theta))

    def flat(self, tensors: list[Tensor]) -> Tensor:
        """Put tensors shaped like theta into one flat vector (P,)."""
        return torch.cat([each.reshape(-1) for each in tensors])

    def like_theta(self, vector: Tensor) -> list[Tensor]:
        """Cut a flat vector (P,) into views shaped like theta."""
        pieces = vector.split([each.numel() for each in self.theta])
        return [piece.view_as(each) for piece, each in zip(pieces, self.theta, strict=True)]

    def in_memory(self, work: Callable[[], T]) -> T:
        """Do the work; when the memory is not enough, halve the micro-batch and do it again, down to one example."""
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self._halve()

    def subset(self, count: int, dtype: str) -> Objective:
        """Return the objective of `count` examples spread evenly over all, in another dtype; a copy."""
        rows = torch.linspace(0, len(self.inputs) - 1, min(count, len(self.inputs))).round().long()
        other = self.chosen(rows.tolist())
        other.dtype = DTYPES[dtype]
        other._place(other.inputs, other.targets)
        return other

    def chosen(self, rows: Sequence[int]) -> Objective:
        """Return the objective of these examples, in this order; a copy at the same theta."""
        other, at = copy.copy(self), torch.tensor(rows, dtype=torch.int64, device=self.inputs.device)
        other._hold(self.inputs[at], self.targets[at])
        other.caveats, other.micro_batch = [], min(self.micro_batch, len(rows))
        return other

    def at(self, checkpoint: Checkpoint) -> Objective:
        """Return the same objective at another checkpoint of the same model; raise ModelError where it does not fit."""
        if self.load is None:
            raise ValueError("this objective was made of a module, not of a checkpoint")
        other = copy.copy(self)
        other.module = self.load(checkpoint).eval()
        other.about = {**self.about, "checkpoint": named(checkpoint)}
        other._place(self.inputs, self.targets)
        return other

    def moved(self, theta: Sequence[Tensor], buffers: Mapping[str, Tensor] | None = None) -> Objective:
        """Return the same objective at another theta and, where given, with other buffers (by name); a copy."""
        other = copy.copy(self)
        other.theta = [each.detach().requires_grad_() for each in theta]
        other.constants = {**self.constants, **(buffers or {})}
        return other

    def with_test(self, batches: Batches) -> Objective:
        """Return the same objective with test data beside it; raise DataError where they do not fit the model."""
        other = copy.copy(self)
        options: dict[str, Any] = {"device": str(self.device), "micro_batch": self.micro_batch, "own": self.own}
        dtype = str(self.dtype).removeprefix("torch.")
        other._test = Objective(self.module, batches, self.loss, dtype=dtype, about=self.about, **options)
        return other

    def on_test(self) -> Objective | None:
        """Return the objective of the test data at the same theta, or None where there are none."""
        if self._test is None:
            return None
        other = copy.copy(self._test)
        other.module, other.theta, other.constants, other.about = self.module, self.theta, self.constants, self.about
        if other.dtype != self.dtype:
            other.dtype = self.dtype
            other._hold(other.inputs, other.targets)
        return other

    def converted(self, dtype: str, micro_batch: int = 0) -> Objective:
        """Return the same objective in a dtype, and with a micro-batch unless 0."""
        other = self if DTYPES[dtype] == self.dtype else self.subset(len(self.inputs), dtype)
        other.caveats = self.caveats
        other.micro_batch = min(micro_batch or self.micro_batch, len(self.inputs))
        return other

    def card(self) -> dict[str, Any]:
        """Say of what the numbers are: what must agree before two results are compared."""
        return card_of(self)

    def _place(self, inputs: Tensor, targets: Tensor) -> None:
        parameters = {name: each for name, each in self.module.named_parameters() if each.is_floating_point()}
        if not parameters:
            raise ObjectiveError("The model has no floating-point parameters to differentiate by.")
        self.names = tuple(parameters)
        self.theta = [self.cast(each).clone().requires_grad_() for each in parameters.values()]
        rest = [pair for pair in self.module.named_parameters() if pair[0] not in parameters]
        self.constants = {name: self.cast(each) for name, each in [*self.module.named_buffers(), *rest]}
        self._hold(inputs, targets)

    def _hold(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = self._typed(inputs), self._typed(targets)
        if (self.inputs.nbytes + self.targets.nbytes) * 4 < spare_bytes(self.device):
            self.inputs, self.targets = self.inputs.to(self.device), self.targets.to(self.device)
        self.units = int(counted(self.loss, self.targets).sum())

    def _values(self, theta: list[Tensor]) -> dict[str, Tensor]:
        return {**self.constants, **dict(zip(self.names, theta, strict=True))}

    def _batch(self, part: slice) -> tuple[Tensor, Tensor]:
        return self.inputs[part].to(self.device), self.targets[part].to(self.device)

    def _as_floats(self) -> dict[str, Tensor]:
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        return {name: each.float() if each.is_floating_point() else each for name, each in tensors.items()}

    def _on_cpu(self, inputs: Tensor) -> Tensor:
        inputs = inputs.float() if inputs.is_floating_point() else inputs
        return functional_call(self.module, self._as_floats(), (inputs,))  # type: ignore[no-any-return]

    def _typed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def cast(self, tensor: Tensor) -> Tensor:
        """Return a tensor as a constant on the device, floating ones in the dtype of the objective."""
        tensor = tensor.detach()
        return tensor.to(self.device, self.dtype) if tensor.is_floating_point() else tensor.to(self.device)

    def _automatic(self) -> int:
        with strict(self.module):
            bytes_each = graph_bytes(lambda: self.part_loss(self.theta, slice(0, 1)), self.theta)
        held = min(spare_bytes(self.device) // 4, ON_CPU if self.device.type == "cpu" else 1 << 62)
        return max(1, min(LARGEST_PART, held // max(bytes_each, 1)))

    def _halve(self) -> None:
        if self.micro_batch == 1:
            raise ObjectiveError(
                f"The memory of {device_name(self.device)} is not enough for a single example; "
                "use a device with more memory, a shorter context, or smaller examples."
            )
        self.micro_batch //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        words = f"Out of memory: the micro-batch was halved to {self.micro_batch} (the numbers do not depend on it)."
        self.caveats[:] = [*(each for each in self.caveats if not each.startswith("Out of memory")), words]

    def _tallies(self, tick: Callable[[float, str], None] | None, *, finite: bool = True) -> list[Tally]:
        tallies: list[Tally] = []
        for part in self.parts():
            with torch.no_grad(), strict(self.module):
                each = self._tally(part)
            if finite and not bool(torch.isfinite(each.losses).all()):
                raise not_finite(self.module, partial(self.part_loss, self.theta, part), self.inputs[part], part)
            tallies.append(each)
            if tick is not None:
                tick(part.stop / len(self.inputs), "loss and accuracy")
        return tallies

    def _tally(self, part: slice) -> Tally:
        if self.own is not None:
            return self.own.tally(self.module, self._values(self.theta), self._batch(part))
        return tally(self.loss, self.outputs(self.theta, part), self.targets[part].to(self.device))

    def _gradient(self, theta: list[Tensor]) -> Tensor:
        theta = [each.detach().requires_grad_() for each in theta]
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        with strict(self.module):
            for part in self.parts():
                total += self.flat(gradients(self.part_loss(theta, part), theta))
        return total


def build_objective(
    spec: ModelSpec,
    checkpoint: Checkpoint,
    batches: Batches,
    loss: LossName,
    *,
    device: str = "auto",
    dtype: str = "float32",
    micro_batch: int = 0,
) -> Objective:
    """Load the checkpoint into its model and join it with examples and loss.

    Raises ModelError (tensors do not match), DataError (examples or targets do not fit), ObjectiveError.
    """
    from probes.models import load_model, title_of

    about = {"model": title_of(spec), "checkpoint": named(checkpoint), "spec": spec}
    own = own_loss_of(spec) if loss == "operator" else None
    options: dict[str, Any] = {"device": device, "dtype": dtype, "micro_batch": micro_batch}
    objective = Objective(load_model(spec, checkpoint), batches, loss, about=about, own=own, **options)
    objective.load = lambda other: load_model(spec, other)
    return objective

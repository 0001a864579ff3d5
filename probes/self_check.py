"""Is the second derivative right? Symmetry and central differences of the gradient, before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from probes.culprit import culprit
from probes.curvature import HessianProduct
from probes.errors import CurvatureError
from probes.lanczos import random_vector
from probes.objective import Objective

EXAMPLES = 8  # the check runs on a few examples, in float64
VECTORS = 3
TOLERANCE = 1e-3
NUDGE = 1e-3
STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)  # a wrong product is wrong at all, a kink spoils large ones
SYMMETRY = {torch.float32: 1e-3, torch.float64: 1e-8}


def check_curvature(objective: Objective, product: HessianProduct, seed: int) -> tuple[str, ...]:
    """Refuse (CurvatureError) gradients that are not finite and products that are wrong; return caveats.

    On a few examples in float64 the product is compared, parameter by parameter, with central differences of the
    gradient along random vectors; the product that will be used is checked for symmetry. Two products are spent.
    """
    few = objective.subset(EXAMPLES, "float64")
    _check_finite(few, few.gradient())
    caveats = _check_differences(_beside(few, seed), seed)
    _check_symmetry(product, seed)
    return caveats


def _check_finite(objective: Objective, gradient: Tensor) -> None:
    pieces = zip(objective.names, objective.like_theta(gradient), strict=True)
    bad = [name for name, piece in pieces if not bool(torch.isfinite(piece).all())]
    if bad:
        raise CurvatureError(
            f"The gradient is not finite, first at the parameter `{bad[0]}` ({len(bad)} of {len(objective.names)} "
            "parameters); check the checkpoint (diverged?) and square roots or norms at zero."
        )


def _beside(objective: Objective, seed: int) -> Objective:
    """Step a little aside: zero biases on a blank background put units exactly on the kink of their ReLU."""
    nudges = objective.like_theta(random_vector(objective.size, seed, -30).to(objective.device))
    pairs = zip(objective.theta, nudges, strict=True)
    aside = [each.detach() + NUDGE * (1 + each.detach().abs().mean()) * nudge for each, nudge in pairs]
    objective.theta = [each.requires_grad_() for each in aside]
    return objective


def _check_symmetry(product: HessianProduct, seed: int) -> None:
    u, v = (random_vector(product.size, seed, -1 - i) for i in range(2))
    Hu, Hv = product(u).double().cpu(), product(v).double().cpu()
    difference, scale = abs(float(u @ Hv - v @ Hu)), float(u.norm() * Hv.norm() + v.norm() * Hu.norm()) / 2
    if difference > SYMMETRY[product.objective.dtype] * scale:
        raise CurvatureError(
            f"The product with the Hessian is not symmetric (u'Hv and v'Hu differ by {difference / scale:.1e} of its "
            "size): some operation of the model has a wrong second derivative or is not deterministic."
        )


def _check_differences(objective: Objective, seed: int) -> tuple[str, ...]:
    product = HessianProduct(objective)
    noise = _gradient_noise(objective, seed)
    least = torch.full((len(objective.names),), float("inf"), dtype=torch.float64)
    for index in range(VECTORS):
        v = random_vector(objective.size, seed, -10 - index).to(objective.device)
        v /= v.norm()
        try:
            Hv = product(v)
        except CurvatureError as error:
            where = culprit(objective, seed)
            raise CurvatureError(f"{error}{where}") from error
        errors = _errors(objective, v, Hv, noise)
        if errors is not None:  # a wrong product is wrong along every vector, a kink spoils one or another
            least = torch.minimum(least, errors)
    if bool(torch.isinf(least).any()):
        return ("The curvature is too small beside rounding for the check by finite differences.",)
    if float(least.max()) > TOLERANCE:
        raise CurvatureError(_differ(objective, least, seed))
    return ()


def _errors(objective: Objective, v: Tensor, Hv: Tensor, noise: Tensor) -> Tensor | None:
    """Return per parameter tensor the relative error at its best step, or None when rounding hides everything."""
    theta = objective.flat([each.detach() for each in objective.theta])
    scale = 1 + float(theta.norm()) / theta.numel() ** 0.5
    product = _norms(objective, Hv)
    best = torch.full_like(product, float("inf"))
    useful = False
    for step in STEPS:
        h = step * scale
        ahead = objective.gradient(objective.like_theta(theta + h * v))
        behind = objective.gradient(objective.like_theta(theta - h * v))
        difference = (ahead - behind) / (2 * h)
        rounding = 8 * noise / h
        size = torch.maximum(product, _norms(objective, difference))
        useful = useful or bool((rounding < 0.1 * size).any())
        excess = (_norms(objective, Hv - difference) - rounding - 1e-9 * size.max()).clamp(min=0)
        best = torch.minimum(best, excess / size.clamp(min=1e-300))
    return best if useful else None


def _gradient_noise(objective: Objective, seed: int) -> Tensor:
    """Estimate the rounding of the gradient, per parameter: what a change in the last place of theta does."""
    theta = objective.flat([each.detach() for each in objective.theta])
    signs = random_vector(objective.size, seed, -20).sign().to(theta.device)
    nudged = theta * (1 + 2.3e-16 * signs)
    change = objective.gradient(objective.like_theta(nudged)) - objective.gradient()
    return _norms(objective, change)


def _norms(objective: Objective, vector: Tensor) -> Tensor:
    return torch.stack([piece.norm() for piece in objective.like_theta(vector)]).cpu()


def _differ(objective: Objective, worst: Tensor, seed: int) -> str:
    bad = [name for name, error in zip(objective.names, worst.tolist(), strict=True) if error > TOLERANCE]
    names = ", ".join(f"`{name}`" for name in bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    return (
        f"The second derivative is wrong: products with the Hessian differ from finite differences of the gradient by "
        f"up to {100 * float(worst.max()):.2g} % (parameters {names}).{culprit(objective, seed)}"
    )

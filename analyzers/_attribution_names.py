"""The methods of attribution by name, title and family: what a form needs to offer them, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """How a method is called, and of which family it is."""

    title: str
    family: str


FAMILIES = {
    "gradient": "gradients",
    "backprop": "modified backpropagation",
    "cam": "class activation",
    "perturbation": "perturbation",
    "decomposition": "decomposition",
    "mask": "masks",
    "attention": "attention",
    "layer": "layers",
}
METHODS: Mapping[str, Named] = {
    "gradient": Named("Gradient", "gradient"),
    "saliency": Named("Saliency (absolute gradient)", "gradient"),
    "input_x_gradient": Named("Input × gradient", "gradient"),
    "integrated_gradients": Named("Integrated gradients", "gradient"),
    "gradient_shap": Named("GradientShap (expected gradients)", "gradient"),
    "smoothgrad": Named("SmoothGrad", "gradient"),
    "smoothgrad_squared": Named("SmoothGrad squared", "gradient"),
    "vargrad": Named("VarGrad", "gradient"),
    "deep_lift": Named("DeepLIFT", "backprop"),
    "deep_lift_shap": Named("DeepLiftShap", "backprop"),
    "guided_backprop": Named("Guided backpropagation", "backprop"),
    "deconvolution": Named("Deconvolution", "backprop"),
    "grad_cam": Named("Grad-CAM", "cam"),
    "grad_cam_plus_plus": Named("Grad-CAM++", "cam"),
    "hires_cam": Named("HiResCAM", "cam"),
    "lrp_epsilon": Named("LRP-ε", "backprop"),
    "lrp_composite": Named("LRP (γ at convolutions, ε at linear layers)", "backprop"),
    "occlusion": Named("Occlusion", "perturbation"),
    "feature_ablation": Named("Feature ablation", "perturbation"),
    "exact_shapley": Named("Shapley values (exact)", "perturbation"),
    "shapley_sampling": Named("Shapley value sampling", "perturbation"),
    "kernel_shap": Named("KernelSHAP", "perturbation"),
    "lime": Named("LIME", "perturbation"),
    "rise": Named("RISE", "perturbation"),
    "fullgrad": Named("Full gradients (input and biases)", "decomposition"),
    "extremal": Named("Extremal perturbation (preserve)", "mask"),
    "extremal_delete": Named("Extremal perturbation (delete)", "mask"),
    "extremal_dual": Named("Extremal perturbation (both)", "mask"),
    "extremal_channels": Named("Extremal channels of a layer", "mask"),
    "attention_rollout": Named("Attention rollout (attention, not attribution)", "attention"),
    "gradient_x_attention": Named("Gradient × attention (attention weighed by gradients)", "attention"),
    "layer_conductance": Named("Layer conductance", "layer"),
    "layer_integrated_gradients": Named("Integrated gradients of a layer", "layer"),
    "neuron_conductance": Named("Neuron conductance", "layer"),
}

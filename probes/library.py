"""The models of torchvision and timm, built by name and with sizes.

Nothing is downloaded: models are built without weights. timm may be absent; its models are then passed over, and that
is said. Torch and the two libraries are imported only when something is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from probes.errors import ModelError
from probes.specs import ModelSpec

if TYPE_CHECKING:
    from torch import nn

LIBRARIES = ("torchvision", "timm")
ARGUMENTS: Mapping[str, str] = {
    "num_classes": "logits; 0 leaves the classifier out (timm)",
    "in_chans": "channels of the images",
    "img_size": "side of the images, of models with a position table",
    "patch_size": "side of a patch",
    "aux_logits": "with the auxiliary classifiers (GoogLeNet, Inception)",
    "stem_kernel": "side of the first convolution, where it was replaced (ResNets of torchvision)",
    "stem_stride": "stride of the replaced convolution",
    "stem_pool": "keep the pool behind the replaced convolution",
    "head": "the layers that stand in the place of the classifier, as Sequential(...)",
    "head_at": "the name of the layer that they replace",
    "variant": "another model with exactly these tensors",
}
_TEXTS = ("head", "head_at")
_FLAGS = ("aux_logits", "stem_pool")
_LARGEST = {"num_classes": 2**24, "in_chans": 4096, "img_size": 2048, "patch_size": 256, "stem_kernel": 32}
_NAME = re.compile(r"(torchvision|timm)/(\w{1,100})")


def build_library(spec: ModelSpec) -> nn.Module:
    """Build a model without weights, as it is in eval mode: images to logits. Raises ModelError."""
    import torch

    full = str(spec.arguments.get("variant", spec.name))
    library, name = _known(full)
    arguments = _checked(full, spec.arguments)
    head, place = arguments.pop("head", ""), arguments.pop("head_at", "")
    try:
        make = _torchvision if library == "torchvision" else _timm
        on_meta = torch.get_default_device().type == "meta" and name.startswith("regnet")
        model = _sized(lambda: make(name, arguments)) if on_meta else make(name, arguments)
        return _with_head(model, place, head) if head else model
    except ModelError:
        raise
    except Exception as error:  # a thousand model functions, each with its own way to fail
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{full} cannot be built with {arguments} ({reason}).") from error


def title_of_library(spec: ModelSpec) -> str:
    """Name the model by the library's own name for it, and its sizes."""
    given = spec.arguments
    library, _, name = str(given.get("variant", spec.name)).partition("/")
    classes, channels = given.get("num_classes", 1000), given.get("in_chans", 3)
    told = [f"{classes:,} classes" if classes else "no classifier"] if isinstance(classes, int) else []
    told = ["classifier replaced"] if "head" in given else told
    told += [f"{channels} channel{'' if channels == 1 else 's'}"] if channels != 3 else []
    told += [f"images of {given['img_size']}"] if "img_size" in given else []
    told += ["first convolution replaced"] if "stem_kernel" in given else []
    told += ["no auxiliary classifiers"] if given.get("aux_logits") is False else []
    return f"{library} {name}, {', '.join(told)}"


@cache
def is_here(name: str) -> bool:
    """Tell whether the library of a model is installed, without importing it."""
    return find_spec(name.partition("/")[0]) is not None


def _known(full: str) -> tuple[str, str]:
    """Split a name; only names that the library lists itself go to it: some of its others lead to the network."""
    found = _NAME.fullmatch(full)
    if found is None:
        raise ModelError(f"There is no model {full[:80]!r}; names are like torchvision/resnet18 or timm/convnext_atto.")
    library, name = found.groups()
    if not is_here(library):
        raise ModelError(f"{full} needs {library}, which is not installed here: pip install {library}.")
    if name not in _names(library):
        raise ModelError(f"{library} has no model {name!r} in the version that is installed here.")
    return library, name


@cache
def _names(library: str) -> frozenset[str]:
    if library == "timm":
        import timm

        return frozenset(timm.list_models())
    from torchvision import models

    return frozenset(models.list_models(module=models))


def _checked(full: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes without the variant; raise ModelError for what is unknown or absurd."""
    arguments = {name: value for name, value in given.items() if name != "variant"}
    for name, value in arguments.items():
        if name not in ARGUMENTS:
            raise ModelError(f"{full}: {name[:80]!r} is no argument; there are {', '.join(ARGUMENTS)}.")
        limit = _LARGEST.get(name, 16)
        if name in _TEXTS:
            right, what = isinstance(value, str), "a text"
        elif name in _FLAGS:
            right, what = isinstance(value, bool), "true or false"
        else:
            right, what = type(value) is int and 0 <= value <= limit, f"a whole number up to {limit:,}"
        if not right:
            raise ModelError(f"{full}: {name} is {value!r:.80}; it must be {what}.")
    return arguments


def _timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, no_jit=True, **arguments)
    return model


def _torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    given = dict(arguments)
    channels = given.pop("in_chans", 3)
    stem = {key: given.pop(key) for key in list(given) if key.startswith("stem_")}
    if "img_size" in given:
        given["image_size"] = given.pop("img_size")
    if name in ("googlenet", "inception_v3"):
        given["init_weights"] = False  # its own initialisation takes seconds, and weights follow anyway
    model: nn.Module = models.get_model(name, weights=None, **given)
    if channels != 3 or stem:
        _replace_stem(model, channels, stem)
    return model


def _with_head(model: nn.Module, place: str, text: str) -> nn.Module:
    from probes.architecture.model_text import build_text

    model.get_submodule(place)  # raises where there is none
    parent, _, leaf = place.rpartition(".")
    layers = build_text(text)
    setattr(model.get_submodule(parent), leaf, layers if text.startswith("Sequential") else layers.get_submodule("0"))
    return model


def _replace_stem(model: nn.Module, channels: int, stem: Mapping[str, Any]) -> None:
    """Put in another first convolution, as people do who train on small or grey images."""
    from torch import nn

    name, old = next((name, each) for name, each in model.named_modules() if isinstance(each, nn.Conv2d | nn.Conv3d))
    shape = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    kernel = stem.get("stem_kernel")
    if kernel:
        shape = {"kernel_size": kernel, "stride": stem.get("stem_stride", 1), "padding": kernel // 2}
        if not stem.get("stem_pool", False) and hasattr(model, "maxpool"):
            model.maxpool = nn.Identity()
    new = type(old)(channels, old.out_channels, bias=old.bias is not None, **shape)  # type: ignore[arg-type]
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def _sized(make: Callable[[], nn.Module]) -> nn.Module:
    """Build with layers on the meta device, but with numbers on the CPU: some models compute their widths by torch."""
    import torch
    from torch.overrides import TorchFunctionMode

    class LayersOnMeta(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function is torch.empty:
                kwargs["device"] = "meta"
            return function(*args, **kwargs)

    with torch.device("cpu"), LayersOnMeta():
        return make()

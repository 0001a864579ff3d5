"""A pasted `Sequential(...)`, or the text of `print(model)`, -> nn.Sequential. Parsed, never evaluated.

Only the layers of torch.nn listed here, with numbers, words and tuples of them as arguments. Text that names
anything else is refused with the name and its line.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from probes.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

_LAYER_NAMES = """
Linear Identity Embedding Flatten Unflatten Dropout Dropout1d Dropout2d Dropout3d AlphaDropout
Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d
BatchNorm1d BatchNorm2d BatchNorm3d LayerNorm GroupNorm RMSNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d
LocalResponseNorm
MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d
AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Sigmoid LogSigmoid Hardsigmoid Hardswish Hardtanh
Hardshrink Softshrink Tanh Tanhshrink Softplus Softsign Softmin Softmax LogSoftmax Softmax2d Threshold GLU
ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ReflectionPad1d ReflectionPad2d ReplicationPad1d
ReplicationPad2d CircularPad1d CircularPad2d Upsample UpsamplingNearest2d UpsamplingBilinear2d PixelShuffle
PixelUnshuffle ChannelShuffle
"""
LAYERS = frozenset(_LAYER_NAMES.split())
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule")
_WORDS = ("same", "valid", "zeros", "reflect", "replicate", "circular", "none", "tanh", "nearest", "bilinear")
_NOT_ARGUMENTS = ("device", "dtype", "return_indices", "_weight", "_freeze")
_MAXIMUM_TEXT = 200_000
_MAXIMUM_LAYERS = 2_000
_MAXIMUM_DEPTH = 20
_MAXIMUM_SIZE = 2**24
_CHILD = re.compile(r"^\((?P<name>[^()]{1,100})\): (?:(?P<count>\d{1,9}) x )?(?P<rest>.+)$")
_HEAD = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*)\($")


@dataclass(frozen=True)
class Layer:
    """One layer as the text has it: its class, its arguments, its children, and its line."""

    kind: str
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)
    children: tuple[tuple[str, Layer], ...] = ()
    line: int = 1


def parse_text(text: str) -> Layer:
    """Read the text into layers; raise ModelError naming what is not allowed, and its line."""
    if len(text) > _MAXIMUM_TEXT:
        raise ModelError(f"The model's text has {len(text):,} characters; at most {_MAXIMUM_TEXT:,} are read.")
    lines = [(count, line.strip()) for count, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ModelError("The model's text is empty. Paste Sequential(...) or what print(model) shows.")
    printed = any(_CHILD.match(line) for _, line in lines)
    root = _printed(lines) if printed else _expression(text.strip(), 0, words=False)
    if root.kind != "Sequential":
        root = Layer("Sequential", children=(("0", root),), line=root.line)
    count = sum(1 for _ in islice(_walk(root, 0), _MAXIMUM_LAYERS + 1))
    if count > _MAXIMUM_LAYERS:
        raise ModelError(f"The model's text has more than {_MAXIMUM_LAYERS:,} layers; that many are not built.")
    return root


def build_text(text: str) -> nn.Module:
    """Build the nn.Sequential that the text describes, activations never in place; raise ModelError."""
    return _build(parse_text(text))


def title_of_text(text: str) -> str:
    """Name the model by its first layers."""
    kinds = [layer.kind for layer in _walk(parse_text(text), 0) if not layer.children]
    return f"Sequential of {len(kinds)} layers: {', '.join(kinds[:6])}{', …' if len(kinds) > 6 else ''}"


def _walk(layer: Layer, depth: int) -> Iterator[Layer]:
    if depth > _MAXIMUM_DEPTH:
        raise ModelError(f"Line {layer.line}: the layers are nested deeper than {_MAXIMUM_DEPTH}.")
    yield layer
    for _, child in layer.children:
        yield from _walk(child, depth + 1)


def _build(layer: Layer) -> nn.Module:
    from torch import nn

    if layer.kind == "Sequential":
        return nn.Sequential(OrderedDict((name, _build(child)) for name, child in layer.children))
    if layer.kind not in LAYERS:
        raise ModelError(f"Line {layer.line}: {layer.kind} is not a layer this can build. {_advice(layer.kind)}")
    make = getattr(nn, layer.kind)
    keywords = {name: value for name, value in layer.keywords.items() if name != "inplace"}
    try:
        bound = inspect.signature(make).bind(*layer.arguments, **keywords)
        bound.arguments.pop("inplace", None)
        return make(*bound.args, **bound.kwargs)  # type: ignore[no-any-return]
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AssertionError) as error:
        raise ModelError(f"Line {layer.line}: {layer.kind} cannot be built with these arguments: {error}.") from None


def _advice(kind: str) -> str:
    if kind in ("ModuleList", "ModuleDict"):
        return "Its forward pass is not in the text; write the model as Sequential(...)."
    return "Only Sequential and the single-input layers of torch.nn are allowed."


def _expression(text: str, offset: int, *, words: bool) -> Layer:
    """Parse one expression; offset: lines before it; words: unquoted words stand for strings, as print writes them."""
    try:
        tree = ast.parse(text, mode="exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = offset + (getattr(error, "lineno", None) or 1)
        raise ModelError(f"Line {line}: this is neither Sequential(...) nor the text of print(model).") from None
    statement = tree.body[0] if len(tree.body) == 1 else None
    if not isinstance(statement, (ast.Expr, ast.Assign)):
        raise ModelError(f"Line {offset + 1}: give one expression, Sequential(...), and nothing else.")
    try:
        return _layer(statement.value, offset, words)
    except RecursionError:
        raise ModelError(f"The layers are nested deeper than {_MAXIMUM_DEPTH}.") from None


def _layer(node: ast.expr, offset: int, words: bool) -> Layer:
    line = offset + node.lineno
    if not isinstance(node, ast.Call):
        raise ModelError(f"Line {line}: {_shown(node)} stands where a layer such as Linear(2, 3) is needed.")
    kind = _kind(node.func, line)
    if kind == "Sequential":
        return Layer(kind, children=tuple(_children(node, offset, words)), line=line)
    if any(keyword.arg is None or keyword.arg in _NOT_ARGUMENTS for keyword in node.keywords):
        raise ModelError(f"Line {line}: {_shown(node)} has an argument that is not allowed here.")
    arguments = tuple(_literal(each, line, words) for each in node.args)
    keywords = {str(each.arg): _literal(each.value, line, words) for each in node.keywords}
    return Layer(kind, arguments, keywords, line=line)


def _kind(node: ast.expr, line: int) -> str:
    name = ast.unparse(node)
    short = name.removeprefix("torch.").removeprefix("nn.")
    if not isinstance(node, (ast.Name, ast.Attribute)) or not short.isidentifier():
        raise ModelError(f"Line {line}: {_shown(node)} is not a layer of torch.nn. {_advice(short)}")
    if short != "Sequential" and short not in LAYERS:
        raise ModelError(f"Line {line}: {short[:80]} is not a layer this can build. {_advice(short)}")
    return short


def _children(node: ast.Call, offset: int, words: bool) -> Iterator[tuple[str, Layer]]:
    line = offset + node.lineno
    if node.keywords:
        raise ModelError(f"Line {line}: Sequential takes layers only, not {node.keywords[0].arg}=….")
    pairs = _named_pairs(node.args[0], line) if len(node.args) == 1 else None
    listed = pairs if pairs is not None else [(str(count), each) for count, each in enumerate(node.args)]
    names = [name for name, _ in listed]
    if len(set(names)) != len(names):
        raise ModelError(f"Line {line}: two layers have the same name.")
    for name, each in listed:
        yield name, _layer(each, offset, words)


def _named_pairs(node: ast.expr, line: int) -> list[tuple[str, ast.expr]] | None:
    """Return the names and layers of OrderedDict([("name", layer), ...]); None when it is a layer."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("OrderedDict", "collections.OrderedDict"):
        return None
    listed = node.args[0] if len(node.args) == 1 and not node.keywords else None
    if isinstance(listed, ast.Dict):
        found = list(zip(listed.keys, listed.values, strict=True))
    elif isinstance(listed, (ast.List, ast.Tuple)):
        found = [
            (each.elts[0], each.elts[1]) for each in listed.elts if isinstance(each, ast.Tuple) and len(each.elts) == 2
        ]
        found = found if len(found) == len(listed.elts) else [(None, node)]
    else:
        found = [(None, node)]
    return [(_name(key, line), value) for key, value in found]


def _name(node: ast.expr | None, line: int) -> str:
    value = node.value if isinstance(node, ast.Constant) else None
    if not isinstance(value, str) or not value or "." in value or len(value) > 100:
        raise ModelError(f'Line {line}: OrderedDict needs a list of ("name", layer) pairs, names without dots.')
    return value


def _literal(node: ast.expr, line: int, words: bool) -> Any:
    """Return a number, a word, None, or a tuple of them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))):
        return _bounded(node.value, line)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _literal(node.operand, line, words=False)
        if isinstance(inner, (int, float)):
            return -inner
    if isinstance(node, (ast.Tuple, ast.List)) and len(node.elts) <= 16:
        return tuple(_literal(each, line, words) for each in node.elts)
    if isinstance(node, ast.Name) and words and node.id in _WORDS:
        return node.id
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Size", "torch.Size") and len(node.args) == 1:
        return _literal(node.args[0], line, words)
    raise ModelError(f"Line {line}: {_shown(node)} is not a plain number, word or tuple; nothing else is read.")


def _bounded(value: Any, line: int) -> Any:
    number = isinstance(value, (int, float))
    if number and (not math.isfinite(value) or abs(value) > _MAXIMUM_SIZE):
        raise ModelError(f"Line {line}: the number {value!s:.40} is too large; at most {_MAXIMUM_SIZE:,}.")
    if isinstance(value, str) and value not in _WORDS:
        raise ModelError(f"Line {line}: the word {value[:40]!r} is not an argument that torch.nn knows here.")
    return value


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return f"`{text[:60]}…`" if len(text) > 60 else f"`{text}`"


def _printed(lines: list[tuple[int, str]]) -> Layer:
    """Read the text of print(model), line by line."""
    layer, after = _block(lines, 0, lines[0][1], 0)
    if after != len(lines):
        raise ModelError(f"Line {lines[after][0]}: `{lines[after][1][:60]}` follows the end of the model.")
    return layer


def _block(lines: list[tuple[int, str]], place: int, text: str, depth: int) -> tuple[Layer, int]:
    """Read the layer that begins with `text` on the line at `place`; return it and the place after it."""
    line = lines[place][0]
    head = _HEAD.match(text)
    if head is None:
        return _expression(text, line - 1, words=True), place + 1
    if depth > _MAXIMUM_DEPTH:
        raise ModelError(f"Line {line}: the layers are nested deeper than {_MAXIMUM_DEPTH}.")
    children: list[tuple[str, Layer]] = []
    place += 1
    while place < len(lines) and lines[place][1] != ")":
        found = _CHILD.match(lines[place][1])
        if found is None:
            raise ModelError(f"Line {lines[place][0]}: `{lines[place][1][:60]}` is not a layer as print writes it.")
        child, place = _block(lines, place, found["rest"], depth + 1)
        children += [(name, child) for name in _names(found, line)]
    if place >= len(lines):
        raise ModelError(f"Line {line}: {head['kind'][:80]}( is never closed; paste the text whole.")
    return _container(head["kind"], children, line), place + 1


def _names(found: re.Match[str], line: int) -> list[str]:
    """Return the names of a child: one, or all of "(0-3): 4 x Linear(...)"."""
    if found["count"] is None:
        return [found["name"]]
    first, _, last = found["name"].partition("-")
    ends = (int(first), int(last)) if first.isdigit() and last.isdigit() else (0, -1)
    if ends[1] - ends[0] + 1 != int(found["count"]) or int(found["count"]) > _MAXIMUM_LAYERS:
        raise ModelError(f"Line {line}: ({found['name']}): {found['count']} x … is not a list of layers.")
    return [str(each) for each in range(ends[0], ends[1] + 1)]


def _container(kind: str, children: list[tuple[str, Layer]], line: int) -> Layer:
    if kind in _WRAPPERS and len(children) == 1:
        return children[0][1]  # the names in the file lose this prefix too
    if kind != "Sequential":
        names = ", ".join(name for name, _ in children[:4])
        raise ModelError(
            f"Line {line}: {kind[:80]} is a class of its own, and print does not show how it joins {names}. If it only "
            'runs them in order, write Sequential(OrderedDict([("name", layer), ...])) with these names.'
        )
    if any("." in name for name, _ in children) or len({name for name, _ in children}) != len(children):
        raise ModelError(f"Line {line}: the layers' names are doubled or have dots.")
    return Layer("Sequential", children=tuple(children), line=line)

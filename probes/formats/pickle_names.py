"""Which names in a pickle are honest? Nothing named is ever imported.

A pickle refers to classes and functions by name. Those that run programs, open files or load code have no place in a
checkpoint: the file is refused by the name. Classes of a training script (a Namespace, a configuration, a module) are
kept as inert records. A function that is unknown and called is refused too: what it would have made cannot be known.
"""

from __future__ import annotations

import sys
from functools import lru_cache

from probes.formats.contents import printable

# Modules of the standard library whose objects are values.
_VALUES = frozenset(
    ("argparse", "array", "collections", "copy_reg", "copyreg", "datetime", "decimal", "enum", "fractions",
     "functools", "ipaddress", "numbers", "pathlib", "random", "typing", "types", "uuid", "zoneinfo", "string",
     "__main__", "logging", "re", "dataclasses", "_collections", "_codecs", "operator", "_operator", "abc", "builtins",
     "__builtin__", "exceptions", "threading", "_thread", "weakref", "inspect", "math", "itertools")
)  # fmt: skip
_BUILTINS = frozenset(
    ("set", "frozenset", "slice", "range", "xrange", "complex", "bytearray", "bytes", "list", "dict", "tuple", "object",
     "int", "float", "str", "unicode", "long", "bool", "type", "Ellipsis", "NotImplemented", "NoneType", "print", "len",
     "max", "min", "sum", "abs", "round")
)  # fmt: skip
_CHOSEN = {
    "types": frozenset(("SimpleNamespace", "NoneType", "MappingProxyType")),
    "functools": frozenset(("partial",)),
    "operator": frozenset(("itemgetter", "add", "sub", "mul", "lt", "gt", "le", "ge", "eq")),
    "_operator": frozenset(("itemgetter", "add", "sub", "mul", "lt", "gt", "le", "ge", "eq")),
    "_codecs": frozenset(("encode",)),
    "re": frozenset(("_compile", "RegexFlag", "Pattern")),
    "logging": frozenset(("getLogger", "Logger")),
    "threading": frozenset(("RLock", "Lock", "Event")),
    "_thread": frozenset(("RLock", "LockType", "lock")),
    "weakref": frozenset(("ref", "WeakSet")),
    "inspect": frozenset(("Signature", "Parameter", "_ParameterKind", "_empty")),
    "itertools": frozenset(("count", "repeat", "chain", "cycle")),
}
# Beyond the standard library: what loads code, opens files or talks to others.
_DANGEROUS = (
    "torch.hub", "torch.jit", "torch.package", "torch.load", "torch.save", "torch.serialization.load",
    "torch.serialization.save", "torch.multiprocessing", "torch.distributed.rpc", "torch.utils.cpp_extension",
    "torch.utils.collect_env", "torch.utils.model_zoo", "torch._inductor", "torch._dynamo", "torch._C._jit",
    "torch.export.load", "torch.ops", "torch.classes", "torch.fx", "torch.utils._import_utils", "torch.testing",
    "numpy.load", "numpy.save", "numpy.fromfile", "numpy.memmap", "numpy.genfromtxt", "numpy.loadtxt", "numpy.testing",
    "numpy.f2py", "numpy.distutils", "numpy.ctypeslib", "numpy.lib.npyio", "numpy.lib._npyio_impl", "numpy.compat",
    "pandas.io", "pandas.eval", "pandas.core.computation", "pip", "setuptools", "pkg_resources",
    "distutils", "joblib", "dill", "cloudpickle", "requests", "urllib3", "httpx", "aiohttp", "paramiko", "fabric",
    "invoke", "sh", "plumbum", "pexpect", "IPython", "ipykernel", "jupyter", "yaml", "jinja2", "sympy", "lib2to3",
    "transformers.dynamic_module_utils", "transformers.utils.hub", "huggingface_hub", "streamlit", "flask", "django",
    "tensorflow.io", "tensorflow.python.eager", "tensorflow.keras.models.load_model", "keras.models.load_model",
    "commands", "nt", "psutil", "cffi", "numba", "Cython", "pyximport", "execnet", "twisted",
)  # fmt: skip
_OPENERS = ("pandas.read_", "safetensors.torch.load", "numpy.save", "transformers.AutoModel")
_FUNCTIONS = frozenset(
    ("collections.defaultdict", "collections.deque", "datetime.datetime", "datetime.date", "datetime.time",
     "datetime.timedelta", "datetime.timezone", "functools.partial", "operator.itemgetter", "_operator.itemgetter",
     "re._compile", "logging.getLogger", "types.SimpleNamespace", "builtins.slice", "builtins.range",
     "builtins.complex", "__builtin__.slice", "__builtin__.xrange", "__builtin__.complex", "builtins.object",
     "builtins.list", "builtins.dict", "builtins.tuple", "builtins.int", "builtins.float", "builtins.str",
     "builtins.bool", "__builtin__.list", "__builtin__.dict", "__builtin__.tuple", "__builtin__.object",
     "builtins.bytes", "itertools.count", "array._array_reconstructor", "weakref.ref",
     "numpy.random._pickle.__randomstate_ctor", "numpy.random._pickle.__bit_generator_ctor",
     "numpy.random._pickle.__generator_ctor", "numpy.random.__RandomState_ctor", "torch.serialization._get_layout",
     "torch.Generator", "torch.random.Generator", "torch.storage.UntypedStorage._new")
)  # fmt: skip

# What TorchScript writes: classes of the program in the same file (__torch__...), which exist nowhere else, and lists.
_SCRIPT = frozenset(
    f"torch.jit._pickle.{each}"
    for each in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
)


@lru_cache(maxsize=4096)
def danger(name: str) -> bool:
    """Say whether a name has no place in a checkpoint: it runs, loads, opens or reaches out of the process."""
    module, _, rest = name.partition(".")
    if name in _SCRIPT or module == "__torch__":
        return False
    dunders = [part for part in name.split(".") if part.startswith("__") and part not in _DUNDERS]
    if dunders and not _is_random(name):
        return True
    if module in ("builtins", "__builtin__", "exceptions"):
        return rest not in _BUILTINS and not rest.endswith(("Error", "Exception", "Warning", "Interrupt"))
    if module in _CHOSEN:
        return rest not in _CHOSEN[module]
    if module in sys.stdlib_module_names and module not in _VALUES:
        return True
    return name.startswith(_OPENERS) or any(name == each or name.startswith(f"{each}.") for each in _DANGEROUS)


_DUNDERS = frozenset(
    ("__main__", "__builtin__", "__newobj__", "__newobj_ex__", "__randomstate_ctor", "__bit_generator_ctor",
     "__generator_ctor", "__RandomState_ctor", "__mp_main__")
)  # fmt: skip


def _is_random(name: str) -> bool:
    """Say whether a name makes one of NumPy's generators of random numbers."""
    return name.startswith(("numpy.random.bit_generator.__pyx_unpickle_", "numpy.random._"))


@lru_cache(maxsize=4096)
def constructs(name: str) -> bool:
    """Say whether calling a name can only be the construction of a value: a class by its capital, or a known one.

    torch's classes of tensors and storages are none: they would hand out memory that nobody wrote to.
    """
    if name in _FUNCTIONS or name in _SCRIPT or name.startswith("__torch__.") or _is_random(name):
        return True
    module, _, last = name.rpartition(".")
    if not last.lstrip("_")[:1].isupper() or module in ("torch", "builtins", "__builtin__"):
        return False
    return not (name.startswith("torch.") and last.endswith(("Tensor", "Storage")))


def stranger(name: str) -> str:
    """Say why a name is not read, as the end of "<file> ...": sparse, quantized, or a program."""
    shown = printable(name)
    if "sparse" in name.lower():
        return f"holds sparse tensors ({shown}), whose indices cannot be trusted; make them dense first"
    if "qtensor" in name or name.startswith(("torch.q", "torch.Q", "torch.per_")):
        return f"holds quantized tensors ({shown}), which have no gradients; save the float weights"
    if name.startswith(("torch.float4", "torch.bits", "torch.int", "torch.uint")):
        return f"holds numbers of type {shown}, which cannot be analysed; save them as float32"
    if "_rebuild_meta" in name:
        return f"holds tensors on the meta device ({shown}), which have no values; save the real weights"
    if "_rebuild_nested" in name or "_rebuild_wrapper" in name:
        return f"holds tensors of a special kind ({shown}); save them as ordinary dense tensors"
    if name.startswith("torch._utils._rebuild"):
        return f"needs {shown}, which a newer PyTorch wrote and this reader does not know; save a plain state dict"
    return f"names {shown}, which would need code to be run"

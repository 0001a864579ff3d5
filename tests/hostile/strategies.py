"""What hypothesis makes up: pickles, zip archives, headers, indexes and changes, more often plausible than not."""

from __future__ import annotations

from hostile import folders, headers
from hostile.archives import good, npy
from hostile.assemble import Call, Entry, Name, Storage, opcodes, tensor
from hypothesis import strategies as st

INTERESTING = (0, 1, 2, 6, 24, 127, 255, 2**15, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64, -1, -(2**63))
numbers = st.sampled_from(INTERESTING) | st.integers(-3, 12)
names = st.sampled_from(
    [
        Name("collections", "OrderedDict"), Name("torch._utils", "_rebuild_tensor_v2"), Name("torch", "FloatStorage"),
        Name("torch._utils", "_rebuild_parameter"), Name("torch", "Size"), Name("torch", "float32"),
        Name("argparse", "Namespace"), Name("my.module", "Config"), Name("numpy", "dtype"), Name("_codecs", "encode"),
        Name("numpy._core.multiarray", "_reconstruct"), Name("numpy._core.multiarray", "scalar"),
        Name("numpy", "ndarray"), Name("os", "system"),
        Name("torch.storage", "_load_from_bytes"), Name("torch.nn.modules.linear", "Linear"), Name("builtins", "set"),
        Name("torch.storage", "UntypedStorage"), Name("collections", "defaultdict"), Name("builtins", "getattr"),
    ]
)  # fmt: skip
texts = st.sampled_from(["state_dict", "model", "epoch", "fc.weight", "0", "storage", "cpu", "_modules", "f4", "<", ""])
storages = st.builds(
    Storage, st.sampled_from("012"), numbers, st.sampled_from(["FloatStorage", "LongStorage", "Tensor"])
)
shapes = st.lists(numbers, max_size=4)
tensors = st.builds(tensor, storages, shapes, st.none() | shapes, numbers)
leaves = st.none() | st.booleans() | numbers | st.floats() | texts | st.binary(max_size=9) | names | storages | tensors
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(texts, inner, max_size=4)
        | st.builds(Call, names, st.lists(inner, max_size=4).map(tuple), st.none() | inner)
    ),
    max_leaves=12,
)
CODES = [bytes([code]) for code in b"()]}NRbue0adlots\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94Q12"]
fragments = (
    st.sampled_from(CODES)
    | leaves.map(opcodes)
    | st.integers(0, 5).map(lambda n: b"h" + bytes([n]))
    | st.integers(0, 5).map(lambda n: b"q" + bytes([n]))
    | st.binary(max_size=3)
)
programs = st.lists(fragments, max_size=40).map(b"".join)


lies = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from([0, 8, 12, 14, 77]),
        "flags": st.sampled_from([0, 1, 8, 0x41, 0x800, 0xFFFF]),
        "crc": st.integers(0, 2**32 - 1),
        "size": st.sampled_from([0, 1, 24, 2**31, 2**32 - 1]),
        "packed": st.sampled_from([0, 1, 24, 2**31, 2**32 - 1]),
        "local": st.sampled_from(["archive/data.pkl", "x", ""]),
        "at": st.sampled_from([0, 1, 60, 2**31, 2**32 - 1]),
        "mode": st.sampled_from([0, 0o644, 0o120777, 0o020666, 0o177777]),
        "extra": st.binary(max_size=24) | st.just(b"\1\0\x10\0" + b"\xff" * 16),
        "version": st.integers(0, 255),
        "local_size": st.sampled_from([0, 2**32 - 1]),
        "hidden": st.booleans(),
    },
)
FILES = (
    "data.pkl",
    "data/0",
    "data/1",
    "version",
    "byteorder",
    "DATA.PKL",
    "../x",
    "data/\u00e9",
    "constants.pkl",
    ".npy",
)
records = st.builds(
    lambda name, data, lie: Entry(f"archive/{name}", data, **lie),
    st.sampled_from(FILES),
    st.sampled_from([entry.data for entry in good()] + [b"", npy()]) | st.binary(max_size=20),
    lies,
)
archives = st.lists(records, max_size=5).map(lambda more: [*good(), *more]) | st.lists(records, max_size=6)


json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "BOOL", "I64", "F8_E4M3", "F4", ""]) | json_values,
        "shape": st.lists(numbers, max_size=5) | json_values,
        "data_offsets": st.tuples(numbers, numbers).map(list) | st.just([0, 24]) | st.just([24, 32]) | json_values,
    },
)
tables = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=9), entries | json_values, max_size=4
)


ggufs = st.builds(
    headers.gguf,
    tensors=st.sampled_from([0, 1, 2, 2**31, 2**63]),
    keys=st.sampled_from([0, 1, 2, 3, 2**31, 2**63]),
    version=st.sampled_from([1, 2, 3, 4, 2**24]),
    dims=st.lists(st.sampled_from([0, 1, 2, 3, 32, 256, 2**31, 2**63]), max_size=5).map(tuple),
    kind=st.integers(0, 45) | st.just(2**31),
    offset=st.sampled_from([0, 1, 32, 2**31, 2**63]),
    body=st.binary(max_size=300),
    more=st.binary(max_size=60),
    name=st.text(max_size=8),
    count=st.none() | st.integers(0, 2**31),
)


paths = st.sampled_from([*folders.SHARDS, "config.json", "../x", "/etc/hostname", ".", "", "a\0b", "model.safetensors"])
maps = st.dictionaries(st.sampled_from(list(folders.SHAPES)) | st.text(max_size=5), paths | json_values, max_size=20)
configurations = st.dictionaries(
    st.sampled_from([*folders.CONFIG, "auto_map", "quantization_config", "num_labels"]), json_values
)


changes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "copy", "insert", "drop"]),
        st.integers(0),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=5,
)

"""NumPy archives are read as checkpoints without unpickling; NumPy writes them and is the oracle."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import LIMITS, answer, mutants, refusal

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Contents, Limits
from probes.formats.npz import is_npz, read_npz_checkpoint

SAVE: dict[str, Callable[..., None]] = {"plain": np.savez, "deflated": np.savez_compressed}
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16")


def as_arrays(contents: Contents) -> dict[str, np.ndarray[Any, Any]]:
    return {name: each.read().view(np.dtype(each.dtype)).reshape(each.shape) for name, each in contents.value.items()}


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    some = {f"t/{code}": (random.standard_normal((3, 4, 2)) * 9).astype(code) for code in DTYPES}
    return {
        **some,
        "turned": np.asfortranarray(random.standard_normal((5, 7)).astype("f4")),
        "turned.big": np.asfortranarray(random.standard_normal((2, 3, 4)).astype(">f8")),
        "big.complex": random.standard_normal(6).astype(">c16"),
        "big.half": random.standard_normal((4, 2)).astype(">f2"),
        "part": random.standard_normal((9, 9))[::2, 1:5],
        "scalar": np.array(2.5, "f4"),
        "empty": np.zeros((0, 3)),
    }


@pytest.mark.parametrize("how", SAVE)
def test_what_numpy_saved_is_read_bit_for_bit(how: str, tmp_path: Path) -> None:
    SAVE[how](tmp_path / "x.npz", **arrays())
    with np.load(tmp_path / "x.npz", allow_pickle=False) as loaded:
        expected = {name.replace("/", "."): loaded[name] for name in loaded.files}
    contents = read_npz_checkpoint(tmp_path / "x.npz", "x", LIMITS)
    found = as_arrays(contents)
    assert contents.format == "npz"
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype.newbyteorder("<")
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
    contents.verify()
    assert not contents.doubts


def test_headers_of_versions_2_and_3_and_of_python_2_are_read(tmp_path: Path) -> None:
    array = np.arange(6, dtype="f4").reshape(2, 3)
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        for version in ((1, 0), (2, 0), (3, 0)):
            file = io.BytesIO()
            np.lib.format.write_array(file, array, version=version)
            archive.writestr(f"v{version[0]}.npy", file.getvalue())
        archive.writestr("old.npy", npy("{'shape': (2L, 3L), 'fortran_order': False, 'descr': '<f4'}", array.tobytes()))
    found = as_arrays(read_npz_checkpoint(tmp_path / "x", "x", LIMITS))
    assert list(found) == ["v1", "v2", "v3", "old"]
    assert all(np.array_equal(each, array) for each in found.values())


def npy(header: str, content: bytes = b"") -> bytes:
    text = f"{header}\n".encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def zipped(path: Path, how: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in records.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_only_zips_of_arrays_are_taken() -> None:
    assert is_npz(["a.npy", "b/c.npy"])
    assert not is_npz([])
    assert not is_npz(["a.npy", "data.pkl"])


def test_text_is_left_behind_and_data_are_doubted(tmp_path: Path) -> None:
    np.savez(tmp_path / "x", images=np.zeros((2, 3)), labels=np.zeros(2, int), ids=np.array(["a", "b"]))
    contents = read_npz_checkpoint(tmp_path / "x.npz", "x", LIMITS)
    assert set(contents.value) == {"images", "labels"}
    assert "ids" in contents.left[0]
    assert "no checkpoint" in contents.doubts[0]


class Trap:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


@pytest.mark.parametrize("how", SAVE)
def test_objects_are_refused_and_never_unpickled(how: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    SAVE[how](tmp_path / "x.npz", weight=np.ones(3), trap=np.array([Trap(canary)], dtype=object))
    words = refusal(read_npz_checkpoint, tmp_path / "x.npz")
    assert "Python objects" in words
    assert "trap" in words
    assert not canary.exists()


OTHER_TYPES = {
    "records": (np.zeros(2, [("a", "f4"), ("b", "i8")]), "records with fields"),
    "dates": (np.zeros(2, "M8[s]"), "dates"),
    "spans": (np.zeros(2, "m8[s]"), "time"),
    "long": (np.zeros(2, np.longdouble), "long doubles"),
    "raw": (np.zeros(2, "V2"), "bfloat16"),
}


@pytest.mark.parametrize("case", OTHER_TYPES)
def test_types_that_no_tensor_has_are_refused_by_name(case: str, tmp_path: Path) -> None:
    array, words = OTHER_TYPES[case]
    np.savez(tmp_path / "x.npz", odd=array)
    assert words in refusal(read_npz_checkpoint, tmp_path / "x.npz")


HEADERS = {
    "terabytes": ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }", "shape"),
    "gigabytes": ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 100), }", "declares"),
    "huge and empty": ("{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 0), }", "shape"),
    "a number of 5000 digits": (f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({'9' * 5000},), }}", "damaged"),
    "rank 99": (f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({'1, ' * 99}), }}", "shape"),
    "negative": ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }", "cannot be read"),
    "code": ("{'descr': '<f8', 'fortran_order': False, 'shape': (__import__('os'),), }", "cannot be read"),
    "no shape": ("{'descr': '<f8', 'fortran_order': False, }", "cannot be read"),
    "shape twice": ("{'shape': (1,), 'shape': (2,), 'shape': (3,)}", "cannot be read"),
    "more behind": ("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), 'more': 1}", "cannot be read"),
    "nested": ("(" * 9000, "cannot be read"),
    "unknown type": ("{'descr': '<q8', 'fortran_order': False, 'shape': (1,), }", "type q8"),
    "no type": ("{'descr': '<f8f8', 'fortran_order': False, 'shape': (1,), }", "cannot be read"),
}


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", HEADERS)
def test_hostile_headers_are_refused_in_words(case: str, how: int, tmp_path: Path) -> None:
    header, words = HEADERS[case]
    path = zipped(tmp_path / "x", how, a=npy(header, bytes(8)), b=npy("{'descr': '<f8', 'fortran_order': False}"))
    assert words in refusal(read_npz_checkpoint, path)


def test_records_without_a_header_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00" + bytes(99), b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"):
        assert "no header" in refusal(read_npz_checkpoint, zipped(tmp_path / "x", a=content))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a", "a"), ("a/b", "a.b"), ("../a", "b"), ("/etc/a", "b"), ("n" * 600, "b")])
def test_doubled_leaving_and_long_names_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (), }", b"1"))
    assert refusal(read_npz_checkpoint, tmp_path / "x")


def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x", a=np.zeros(10**8, "u1"))
    assert (tmp_path / "x.npz").stat().st_size < 200_000
    assert "bomb" in refusal(read_npz_checkpoint, tmp_path / "x.npz")


def test_a_record_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    header = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (900,), }")
    path = zipped(tmp_path / "x", zipfile.ZIP_DEFLATED, a=header + bytes(10**6))
    content = path.read_bytes().replace(struct.pack("<I", len(header) + 10**6), struct.pack("<I", len(header) + 900))
    path.write_bytes(content)
    assert "more than it declares" in refusal(read_npz_checkpoint, path)


@pytest.mark.parametrize("how", SAVE)
def test_a_flipped_bit_is_found_on_reading_and_on_verifying(how: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    SAVE[how](path, a=np.random.default_rng(0).standard_normal(1000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    contents = read_npz_checkpoint(path, "x", LIMITS)
    with pytest.raises(RefusedCheckpoint):
        contents.verify()
    with pytest.raises(RefusedCheckpoint):
        contents.value["a"].read()


def test_unusual_packing_and_passwords_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x", zipfile.ZIP_LZMA, a=npy("{'descr': '|u1', 'fortran_order': False, 'shape': ()}"))
    assert "unusual" in refusal(read_npz_checkpoint, path)


def test_limits_bound_what_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "x", first=np.zeros((2, 50)), second=np.ones(3))
    for bound in (Limits(tensors=1), Limits(parameters=100), Limits(rank=1), Limits(name=4), Limits(bytes=500)):
        with pytest.raises(RefusedCheckpoint):
            read_npz_checkpoint(tmp_path / "x.npz", "x", bound)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), how=st.sampled_from(sorted(SAVE)))
def test_damaged_files_are_read_rightly_or_refused(
    data: st.DataObject, how: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    SAVE[how](folder / "good.npz", **{"a/w": np.ones((3, 2)), "b": np.asfortranarray(np.ones((2, 2), ">f4"))})
    (folder / "x.npz").write_bytes(data.draw(mutants((folder / "good.npz").read_bytes())))
    if not answer(read_npz_checkpoint, folder / "x.npz"):
        original = as_arrays(read_npz_checkpoint(folder / "good.npz", "x", LIMITS))
        for name, array in as_arrays(read_npz_checkpoint(folder / "x.npz", "x", LIMITS)).items():
            assert np.array_equal(array, original[name])  # the checksums stand for that

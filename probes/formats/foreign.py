"""Files that are no checkpoint: what they are instead, and what a colleague would say to do."""

from __future__ import annotations

from probes.errors import RefusedCheckpoint

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"version https://hawser", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes: bring the weights as safetensors or from PyTorch"),
    (b"\x93NUMPY", "a single NumPy array without a name: save the weights with numpy.savez or as safetensors"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard: unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a media file (RIFF)"),
    (b"\x7fELF", "a program (ELF), which is never run"),
    (b"MZ", "a program (Windows), which is never run"),
    (b"#!", "a script, which is never run"),
    (b"PAR1", "a Parquet table: use it as data"),
    (b"ARROW1", "an Arrow table: use it as data"),
    (b"SQLite format 3", "an SQLite database"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"ggml", "an old GGML file: convert it to GGUF, or bring the original PyTorch or safetensors file"),
    (b"lmgg", "an old GGML file: convert it to GGUF, or bring the original PyTorch or safetensors file"),
)
_TENSORFLOW_TABLE = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # ends an SSTable, as TensorFlow's .index files are
_NOT_HERE = "export the weights as safetensors, or load them where they were made and save a PyTorch state dict"


def refuse_foreign(head: bytes, tail: bytes, name: str) -> None:
    """Raise RefusedCheckpoint where the first and last bytes of a file show that it is something else."""
    if not head:
        raise RefusedCheckpoint(f"{name} is empty (0 bytes). Copy it again from its source.")
    what = next((words for magic, words in _MAGIC if head.startswith(magic)), "") or _by_structure(head, tail)
    if what:
        raise RefusedCheckpoint(f"{name} is {what}.")
    if not head.strip(b"\0") and not tail.strip(b"\0"):
        raise RefusedCheckpoint(f"{name} holds only zeros: its download or copy was not finished. Copy it again.")


def _by_structure(head: bytes, tail: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")):
        return "a web page (HTML), not the file itself: the download asked for a login or the address was wrong"
    if text.startswith((b'{"error', b'{"message', b'{"detail')):
        return "an error message of a server (JSON), not the file itself: the download failed"
    if tail.endswith(_TENSORFLOW_TABLE):
        return f"the index of a TensorFlow checkpoint: {_NOT_HERE}"
    if b"saved_model_schema_version" in head or b"tensorflow" in head.lower() or b"serving_default" in head:
        return f"a TensorFlow model: {_NOT_HERE}"
    if head[:1] == b"\x08" and (b"pytorch" in head or b"onnx" in head.lower() or b"ai.onnx" in tail):
        return "an ONNX model: bring the PyTorch state dict it was exported from"
    if 0x81 <= head[0] <= 0x8F and 0xA1 <= head[1:2].ljust(1, b"\0")[0] <= 0xDB and _is_text(head[2:6]):
        return f"a Flax or JAX checkpoint (MessagePack): {_NOT_HERE}"
    if head[:1] in (b"\xde", b"\xdf") and 0xA1 <= head[3:4].ljust(1, b"\0")[0] <= 0xDB:
        return f"a Flax or JAX checkpoint (MessagePack): {_NOT_HERE}"
    return ""


def _is_text(piece: bytes) -> bool:
    return bool(piece) and all(32 <= each < 127 for each in piece)


def refuse_names(names: list[str], name: str) -> None:
    """Raise RefusedCheckpoint where the names of the files in a folder or zip show whose model it is."""
    last = {each.rstrip("/").split("/")[-1] for each in names}
    if "model.weights.h5" in last or any(each.endswith((".h5", ".keras")) for each in last):
        raise RefusedCheckpoint(f"{name} holds a Keras model: {_NOT_HERE}.")
    if "saved_model.pb" in last or any(".data-00000-of-" in each for each in last):
        raise RefusedCheckpoint(f"{name} holds a TensorFlow model: {_NOT_HERE}.")
    if last & {"flax_model.msgpack", "_CHECKPOINT_METADATA", "_sharding"}:
        raise RefusedCheckpoint(f"{name} holds a Flax or JAX model: {_NOT_HERE}.")
    if any(each.endswith(".onnx") for each in last):
        raise RefusedCheckpoint(f"{name} holds an ONNX model: bring the PyTorch state dict it was exported from.")


def refuse_zip(names: list[str], name: str) -> None:
    """Raise RefusedCheckpoint where the names of a zip's records show that it is no checkpoint that is read here."""
    refuse_names(names, name)
    last = {each.rstrip("/").split("/")[-1] for each in names}
    inner = [each for each in sorted(last) if each.endswith((".pt", ".pth", ".ckpt", ".bin", ".zip", ".pkl"))]
    advice = f"unpack it and choose {inner[0][:60]!r}" if inner else "unpack it and choose the file"
    raise RefusedCheckpoint(f"{name} is a zip archive without a PyTorch checkpoint inside (no data.pkl): {advice}.")

"""Arrow IPC streams -> record batches, each message and each array checked before anything is made of it.

A file on disk is mapped, so that only what is used is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pyarrow as pa

from probes.dataset.files import short, shown
from probes.errors import DataError

CONTINUES = 0xFFFFFFFF
SCHEMA, BATCH = 1, 3
MAX_MESSAGES = 500_000
MAX_METADATA_BYTES = 2**26
MAX_DEPTH = 6
MAX_COLUMNS = 20_000
KINDS: dict[int, str] = {2: "a dictionary batch"}


def read_stream(content: pa.Buffer, name: str) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """Return schema and batches of a stream, fully validated; DataError where it is damaged or of unusual types."""
    _check_messages(memoryview(content), name)
    try:
        with pa.ipc.open_stream(content) as reader:
            schema: pa.Schema = reader.schema
            check_schema(schema, name)
            batches = []
            for batch in reader:
                batch.validate(full=True)
                batches.append(batch)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise DataError(f"{name} is a damaged arrow file ({short(error)}). Save the data again.") from error
    return schema, batches


def check_schema(schema: pa.Schema, name: str) -> None:
    """Refuse columns of one name, too many, and of types that no data set here has."""
    if len(schema) > MAX_COLUMNS or len(set(schema.names)) != len(schema.names):
        raise DataError(f"{name} has {len(schema)} columns, or two of one name. Save the data again.")
    for each in schema:
        if not pa.types.is_null(each.type):  # nothing but missing values; the other columns bound the rows
            _check_type(each.type, name, each.name)
    if all(pa.types.is_null(each.type) for each in schema):
        raise DataError(f"{name} has no columns with values. Give data with some.")


def storage(kind: pa.DataType) -> pa.DataType:
    """Return what an extension type is stored as; any other type as it is."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _check_type(kind: pa.DataType, name: str, column: str, depth: int = 0) -> None:
    """Refuse types that need no bytes for a row (a billion rows of nothing), and those that no data set here has."""
    kind = storage(kind)
    plain = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string,
             pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_temporal)  # fmt: skip
    if any(fits(kind) for fits in plain):
        return None
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    fixed = pa.types.is_fixed_size_list(kind) and kind.list_size > 0
    if depth < MAX_DEPTH and (lists or fixed):
        return _check_type(kind.value_type, name, column, depth + 1)
    if depth < MAX_DEPTH and pa.types.is_struct(kind) and kind.num_fields:
        for each in kind:
            _check_type(each.type, name, column, depth + 1)
        return None
    raise DataError(f"{name}: the column {shown(column)!r} holds {short(kind)}, which is not read here. Take it out.")


def _check_messages(data: memoryview, name: str) -> None:
    """Walk the frames of a stream: no length may lead out of the file, nothing may be packed, and it must end."""
    try:
        for number, (kind, packed) in enumerate(_messages(data)):
            if number > MAX_MESSAGES:
                raise DataError(f"{name} has over {MAX_MESSAGES} batches. Save the data in larger ones.")
            if kind != (BATCH if number else SCHEMA):
                raise DataError(f"{name} holds {KINDS.get(kind, 'a message out of place')}. Save the data again.")
            if packed:
                raise DataError(f"{name} is packed inside. Save it uncompressed.")
    except (struct.error, IndexError, ValueError) as error:
        raise DataError(f"{name} is a damaged or cut-off arrow file ({short(error)}). Copy it again.") from error


def _messages(data: memoryview) -> Iterator[tuple[int, bool]]:
    """Yield the kind of each message of a stream, and whether its buffers are compressed."""
    at = 0
    while True:
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if length == CONTINUES:
            (length,) = struct.unpack_from("<I", data, at)
            at += 4
        if length == 0:
            return
        if length > min(MAX_METADATA_BYTES, len(data) - at):
            raise ValueError(f"a header of {length} bytes")
        kind, body, packed = _message(data[at : at + length])
        at += length + body
        if body < 0 or at > len(data):
            raise ValueError(f"a body of {body} bytes")
        yield kind, packed


def _message(table: memoryview) -> tuple[int, int, bool]:
    """Read of a message's flatbuffer: kind of header, length of body, and whether a batch is compressed."""
    (root,) = struct.unpack_from("<I", table, 0)
    kind_at, header_at, body_at = (_field(table, root, each) for each in (1, 2, 3))
    kind = table[kind_at] if kind_at else 0
    body = struct.unpack_from("<q", table, body_at)[0] if body_at else 0
    if kind != BATCH or not header_at:
        return kind, body, False
    batch = header_at + struct.unpack_from("<I", table, header_at)[0]
    return kind, body, _field(table, batch, 3) != 0


def _field(table: memoryview, at: int, field: int) -> int:
    """Return where a field of a flatbuffer's table lies; 0 where it is left out."""
    (back,) = struct.unpack_from("<i", table, at)
    vtable = at - back
    if vtable < 0:
        raise ValueError("a table out of place")
    (size,) = struct.unpack_from("<H", table, vtable)
    entry = 4 + 2 * field
    if entry + 2 > size:
        return 0
    (offset,) = struct.unpack_from("<H", table, vtable + entry)
    return at + offset if offset else 0

"""Read PNG and JPEG images from a zip or a folder, one folder for each class, through Pillow.

Only the chosen images are opened, one after another, each under a bound of pixels; nothing is unpacked to disk.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from probes.dataset.files import MAX_BYTES, MAX_MEMBERS, Array, Examples, Source, open_zip, read_member, short, words
from probes.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg")
TILE, GAP = 84, 6
MAX_PIXELS = 2**24
MAX_IMAGE_BYTES = 64 * 2**20
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # Pillow's modes of more than 8 bits

Read = Callable[[list[int]], Iterator[bytes]]


@dataclass(frozen=True)
class Picture:
    """Keep the pixels of one image, (H, W) or (H, W, 3) uint8, and what was done to get them."""

    pixels: Array
    was: str  # Pillow's mode
    lossy: bool


def is_image_name(name: str) -> bool:
    """Tell whether a member is an image that belongs to the data."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in ENDINGS and not hidden


def read_images(source: Source) -> Examples:
    """Read a zip or a folder whose folders are the classes, in the order of their sorted names."""
    if source.path.is_dir():
        members = _files_below(source)
        return _examples(source, "folder of images", members, _folder_reader(source, members))
    with open_zip(source) as (_, infos):
        members = sorted(each.filename for each in infos if is_image_name(each.filename))
    return _examples(source, "zip of images", members, _zip_reader(source, members))


def contact_sheet(images: Array, columns: int = 6) -> str:
    """Draw images (N, C, H, W) as one PNG, a data URL; what is not uint8 is stretched to its full range."""
    tiles = [_tile(each) for each in _as_bytes(images)]
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, ((index % columns) * (width + GAP), (index // columns) * (height + GAP)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _as_bytes(images: Array) -> Array:
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    if shown.dtype != np.uint8:
        low, high = float(shown.min()), float(shown.max())
        shown = ((shown - low) / (high - low or 1.0) * 255).astype(np.uint8)
    return shown


def _tile(image: Array) -> Image.Image:
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    tile = Image.fromarray(np.ascontiguousarray(pixels))
    scale = TILE / max(tile.size)
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    return tile.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _examples(source: Source, format: str, members: list[str], read: Read) -> Examples:
    if not members:
        raise DataError(f"{source.name} holds no PNG or JPEG images. Put them in one folder for each class.")
    names = [each.encode(errors="surrogateescape").decode(errors="replace") for each in members]
    owners, classes = _classes(source, names)

    def take(chosen: Array) -> tuple[Array, tuple[str, ...]]:
        indices = [int(each) for each in chosen]
        return _stack(source, [names[each] for each in indices], read(indices))

    return Examples(
        format=format,
        kind="images",
        targets=np.array([classes.index(each) for each in owners], np.int64),
        take=take,
        name_of=names.__getitem__,
        classes=classes,
        doubts=(f"all images are in one class, {classes[0]!r}",) if len(classes) == 1 else (),
    )


def _classes(source: Source, members: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Find the folder level that holds the classes: directly below what all images share."""
    folders = [PurePosixPath(each).parent.parts for each in members]
    if min(len(each) for each in folders) == 0:
        loose = members[[len(each) for each in folders].index(0)]
        raise DataError(f"{source.name}: {loose!r} lies in no class. Put the images in one folder for each class.")
    shared = len(list(itertools.takewhile(_is_shared, zip(*folders, strict=False))))
    depth = min(shared, min(len(each) for each in folders) - 1)
    if max(len(each) for each in folders) > depth + 1:
        tops = sorted({each[depth] for each in folders})
        raise DataError(
            f"{source.name} has folders inside of its folders {', '.join(map(repr, tops[:5]))}. "
            "Give one split only, with one folder for each class."
        )
    owners = [each[depth] for each in folders]
    return owners, tuple(sorted(set(owners)))


def _is_shared(level: tuple[str, ...]) -> bool:
    return len(set(level)) == 1


def _files_below(source: Source) -> list[str]:
    found: list[str] = []
    for folder, folders, files in os.walk(source.path):
        for each in folders:
            if (Path(folder) / each).is_symlink():
                raise DataError(f"{source.name}: the folder {each!r} is a link. Put the folder itself in its place.")
        found += [(Path(folder) / each).relative_to(source.path).as_posix() for each in files]
        if len(found) > MAX_MEMBERS:
            raise DataError(f"{source.name} holds over {MAX_MEMBERS} files. Give a smaller part of the data.")
    return sorted(each for each in found if is_image_name(each))


def _folder_reader(source: Source, members: list[str]) -> Read:
    def read(chosen: list[int]) -> Iterator[bytes]:
        for index in chosen:
            path = source.path / members[index]
            if path.stat().st_size > MAX_IMAGE_BYTES:
                raise DataError(
                    f"{members[index]} has {words(path.stat().st_size)}, too much for an image. Take it out."
                )
            yield path.read_bytes()

    return read


def _zip_reader(source: Source, members: list[str]) -> Read:
    def read(chosen: list[int]) -> Iterator[bytes]:
        with open_zip(source) as (archive, infos):
            by_name = {each.filename: each for each in infos}
            for index in chosen:
                yield read_member(archive, by_name[members[index]], source.name, MAX_IMAGE_BYTES)

    return read


def _stack(source: Source, names: list[str], contents: Iterator[bytes]) -> tuple[Array, tuple[str, ...]]:
    pictures: list[Picture] = []
    held = 0
    for name, content in zip(names, contents, strict=True):
        picture = _decode(name, content)
        held += picture.pixels.nbytes
        if pictures and picture.pixels.shape[:2] != pictures[0].pixels.shape[:2]:
            raise DataError(
                f"{source.name}: {name} is {_size(picture)}, {names[0]} is {_size(pictures[0])} pixels. "
                "All images must have one size: resize them first, as in training."
            )
        if held > MAX_BYTES:
            raise DataError(f"{source.name}: the chosen images unpack to over {words(MAX_BYTES)}. Choose fewer.")
        pictures.append(picture)
    grey = all(each.pixels.ndim == 2 for each in pictures)
    arrays = [each.pixels if grey else _coloured(each.pixels) for each in pictures]
    return np.stack(arrays), _doubts(pictures, grey)


def _decode(name: str, content: bytes) -> Picture:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
                return _picture(name, image)
    except Image.DecompressionBombWarning as error:
        raise DataError(f"{name}: {short(error)}. Take it out or resize it.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is no PNG or JPEG image that can be read ({short(error)}). Take it out.") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError) as error:
        raise DataError(f"{name} is a damaged image ({short(error)}). Take it out or write it again.") from error


def _picture(name: str, image: Image.Image) -> Picture:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are read. Resize it.")
    if image.mode in DEEP:
        raise DataError(f"{name} has more than 8 bits a pixel ({image.mode}). Save it with 8 bits, or as .npz.")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return Picture(np.asarray(image.convert(mode)), image.mode, image.format == "JPEG")


def _coloured(pixels: Array) -> Array:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _size(picture: Picture) -> str:
    height, width = picture.pixels.shape[:2]
    return f"{width} x {height}"


def _doubts(pictures: list[Picture], grey: bool) -> tuple[str, ...]:
    doubts = []
    changed = sorted({each.was for each in pictures} - {"1", "L", "RGB"})
    if changed:
        doubts.append(f"images of mode {', '.join(changed)} were turned into RGB; transparency is left out.")
    mixed = sum(each.pixels.ndim == 2 for each in pictures)
    if not grey and mixed:
        doubts.append(f"{mixed} of {len(pictures)} images are grey and were turned into RGB, as the others are.")
    if any(each.lossy for each in pictures):
        doubts.append("JPEG is lossy: if the model was trained on the original pixels, its accuracy may be lower here.")
    return tuple(doubts)

"""PNG, JPEG and WebP bytes -> pixels, through Pillow, one after another, each under a bound of pixels."""

from __future__ import annotations

import base64
import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from probes.dataset.examples import Taken
from probes.dataset.files import MAX_BYTES, Array, short, words
from probes.errors import DataError

KINDS = ("PNG", "JPEG", "WEBP")
TILE, GAP = 84, 6
MAX_PIXELS = 2**24
MAX_IMAGE_BYTES = 64 * 2**20
MAX_SCANS = 100  # a progressive JPEG has about ten; each one costs a pass over all pixels
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # Pillow's modes of more than 8 bits
ANIMATED = "is animated, and which of its images is meant is not known. Save the one that counts."


@dataclass(frozen=True)
class Picture:
    """Keep the pixels of one image, (H, W) or (H, W, 3) uint8, and what was done to get them."""

    pixels: Array
    was: str  # Pillow's mode
    lossy: str  # "JPEG", "WebP" or ""

    def coloured(self) -> Array:
        """Return the pixels as (H, W, 3)."""
        return self.pixels if self.pixels.ndim == 3 else np.repeat(self.pixels[:, :, None], 3, axis=2)


def stack(source: str, names: list[str], contents: Iterator[bytes]) -> Taken:
    """Decode images of one size into (N, H, W) or (N, H, W, 3) uint8; raises DataError by the image's name."""
    return stacked(source, names, (decode(name, content) for name, content in zip(names, contents, strict=True)))


def stacked(source: str, names: list[str], decoded: Iterable[Picture]) -> Taken:
    """Lay images of one size on one another, (N, H, W) or (N, H, W, 3) uint8; raises DataError by the image's name."""
    pictures: list[Picture] = []
    held = 0
    for name, picture in zip(names, decoded, strict=True):
        held += picture.pixels.nbytes
        if pictures and picture.pixels.shape[:2] != pictures[0].pixels.shape[:2]:
            raise DataError(
                f"{source}: {name} is {_size(picture)}, {names[0]} is {_size(pictures[0])} pixels. "
                "All images must have one size: resize them first, as in training."
            )
        if held > MAX_BYTES:
            raise DataError(f"{source}: the chosen images unpack to over {words(MAX_BYTES)}. Choose fewer.")
        pictures.append(picture)
    grey = all(each.pixels.ndim == 2 for each in pictures)
    arrays = [each.pixels if grey else each.coloured() for each in pictures]
    return Taken(np.stack(arrays), _doubts(pictures, grey))


def decode(name: str, content: bytes) -> Picture:
    """Decode one image; DataError where it is none, damaged, animated, too large, or has more than 8 bits."""
    _check_header(name, content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=KINDS) as image:
                return _picture(name, image, content)
    except Image.DecompressionBombWarning as error:
        raise DataError(f"{name}: {short(error)}. Take it out or resize it.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} has more than {MAX_PIXELS} pixels, far too many. Take it out or resize it.") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is no PNG, JPEG or WebP image that can be read. Take it out.") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError) as error:
        raise DataError(f"{name} is a damaged image ({short(error)}). Take it out or write it again.") from error
    except (TypeError, AttributeError, OverflowError, MemoryError) as error:  # Pillow on odd chunks
        raise DataError(f"{name} is a damaged image ({short(error)}). Take it out or write it again.") from error


def contact_sheet(images: Array, columns: int = 6) -> str:
    """Draw images (N, C, H, W) as one PNG, a data URL; what is not uint8 is stretched to its full range."""
    tiles = [_tile(each) for each in _as_bytes(images)]
    width, height = tiles[0].size
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, tile in enumerate(tiles):
        sheet.paste(tile, ((index % columns) * (width + GAP), (index // columns) * (height + GAP)))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _check_header(name: str, content: bytes) -> None:
    """Refuse before Pillow allocates: a WebP's canvas and animation, a JPEG of endless passes."""
    if content[:4] == b"RIFF" and content[8:16] == b"WEBPVP8X" and len(content) >= 30:
        if content[20] & 2:
            raise DataError(f"{name} {ANIMATED}")
        width, height = (1 + int.from_bytes(content[at : at + 3], "little") for at in (24, 27))
        _check_pixels(name, width, height)
    elif content[:4] == b"RIFF" and len(content) >= 30:  # a still one: 14 bits for each side
        start, shift = (26, 16) if content[12:16] == b"VP8 " else (21, 14)
        sides = int.from_bytes(content[start : start + 4], "little")
        _check_pixels(name, (sides & 0x3FFF) + 1, (sides >> shift & 0x3FFF) + 1)
    if content[:8] == b"\x89PNG\r\n\x1a\n" and content[24:25] == b"\x10":
        raise DataError(f"{name} has 16 bits a channel. Save it with 8 bits, or as .npz.")
    if content[:2] == b"\xff\xd8" and content.count(b"\xff\xda") > MAX_SCANS:
        scans = content.count(b"\xff\xda")
        raise DataError(f"{name} is a JPEG of {scans} passes, which would take hours to read. Take it out.")


def _check_pixels(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{name} has {width} x {height} pixels; at most {MAX_PIXELS} are read. Resize it.")


def _picture(name: str, image: Image.Image, content: bytes) -> Picture:
    _check_pixels(name, image.width, image.height)
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{name} {ANIMATED}")
    if image.mode in DEEP:
        raise DataError(f"{name} has more than 8 bits a pixel ({image.mode}). Save it with 8 bits, or as .npz.")
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return Picture(np.asarray(image.convert(mode)), image.mode, _lossy(image.format or "", content))


def _lossy(format: str, content: bytes) -> str:
    """Name the lossy format; of WebP the chunk "VP8 " is lossy, "VP8L" is not."""
    if format != "WEBP":
        return "" if format == "PNG" else "JPEG"
    at = 12
    while at + 8 <= len(content):
        chunk, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        if chunk in (b"VP8 ", b"VP8L"):
            return "WebP" if chunk == b"VP8 " else ""
        at += 8 + size + size % 2
    return "WebP"


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
    lossy = sorted({each.lossy for each in pictures} - {""})
    if lossy:
        what = " and ".join(lossy)
        doubts.append(
            f"{what} is lossy: if the model was trained on the original pixels, its accuracy may be lower here."
        )
    return tuple(doubts)


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

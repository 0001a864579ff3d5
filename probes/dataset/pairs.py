"""Images with captions: a list beside the images, or arrays of both; inputs are images, targets are token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from probes.dataset.captions import Encoded, encoded, from_ids, read_caption_list, tokenizer_of
from probes.dataset.encoders import read_tokenizer
from probes.dataset.examples import Caption, Examples, Own, Taken, numbered
from probes.dataset.files import Array, Source, shown
from probes.dataset.pictures import MAX_IMAGE_BYTES, decode, stacked
from probes.dataset.preprocessing import Preprocessing
from probes.dataset.trees import Tree
from probes.errors import DataError
from probes.specs import DataSpec


def read_pairs(tree: Tree, member: str, images: list[str], spec: DataSpec, own: Own) -> Examples:
    """Read images and the captions that a list gives them, in the order of the list."""
    source = tree.source.name
    pairs = read_caption_list(tree, member, images, spec.label)
    text = encoded(shown(member), [caption for _, caption in pairs], spec, own)
    plan = own.preprocessing or Preprocessing()

    def take(chosen: Array) -> Taken:
        members = [pairs[int(each)][0] for each in chosen]
        once = list(dict.fromkeys(members))
        pictures = [
            replace(found, pixels=plan.applied(found.coloured()))
            for found in map(decode, map(shown, once), tree.contents(once, MAX_IMAGE_BYTES))
        ]
        taken = stacked(source, list(map(shown, once)), pictures)
        places = {each: place for place, each in enumerate(once)}
        rows = [places[each] for each in members]
        return Taken(taken.inputs[rows], taken.doubts, text.ids[np.asarray(chosen, np.int64)])

    left = len(set(images) - {each for each, _ in pairs})
    doubts = (f"{left} of {len(images)} images have no caption and are left out.",) if left else ()
    kind = "folder" if tree.source.path.is_dir() else "zip"
    about = {"labels": shown(member), "resized": plan.words()}
    made = _examples(f"{kind} of images with captions", text, take, _names([shown(each) for each, _ in pairs]), about)
    return replace(made, doubts=(*doubts, *made.doubts), mean=plan.mean, std=plan.std)


def pairs_of_arrays(
    source: Source,
    images: Array,
    ids: Array | None,
    texts: Array | None,
    spec: DataSpec,
    own: Own,
    names: tuple[str, ...],
) -> Examples:
    """Make pairs of arrays: images, and captions as token ids (N, T) or as strings (N,)."""
    given = ids if ids is not None else texts
    if images.ndim != 4 or given is None or len(given) != len(images) or not len(images):
        shape = None if given is None else given.shape
        raise DataError(
            f"{source.name}: the images have shape {images.shape}, the captions {shape}. Give (N, H, W, C) or "
            "(N, C, H, W) images and one caption each."
        )
    if ids is not None:
        text = Encoded(ids.astype(np.int64), from_ids(ids, _token(source, spec, own)), (), "ids in the file")
    else:
        text = encoded(source.name, [str(each) for each in given.tolist()], spec, own)
    plan = own.preprocessing or Preprocessing()
    pixels = images.dtype == np.uint8  # others are taken as they are: scaled already

    def take(chosen: Array) -> Taken:
        return Taken(images[chosen], (), text.ids[chosen])

    made = _examples("npz of images with captions", text, take, numbered(source.stem, names), {})
    return replace(made, mean=plan.mean, std=plan.std) if pixels else made


def check_arrays(source: Source, ids: Array | None, texts: Array | None) -> None:
    """Refuse what are no token ids, or no strings."""
    if ids is not None and (ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.shape[1] < 2):
        raise DataError(
            f"{source.name}: the token ids are {ids.dtype} of shape {ids.shape}; give whole numbers, a row of two or "
            "more for each image."
        )
    if ids is None and texts is not None and (texts.ndim != 1 or texts.dtype.kind != "U"):
        raise DataError(f"{source.name}: the captions are {texts.dtype} of shape {texts.shape}; give one string each.")


def _examples(
    format: str,
    text: Encoded,
    take: Callable[[Array], Taken],
    name_of: Callable[[int], str],
    about: Mapping[str, object],
) -> Examples:
    return Examples(
        format=format,
        kind="images",
        count=len(text.captions),
        take=take,
        name_of=name_of,
        doubts=text.doubts,
        about={"tokenizer": text.tokenizer, "context": int(text.ids.shape[1]), **about},
        captions=text.captions,
    )


def _names(images: list[str]) -> Callable[[int], str]:
    """Name pairs by their images; where one has several captions they are numbered."""
    total, seen, names = Counter(images), Counter[str](), []
    for each in images:
        seen[each] += 1
        names.append(each if total[each] == 1 else f"{each} #{seen[each]}")
    return names.__getitem__


def _token(source: Source, spec: DataSpec, own: Own) -> Callable[[int], str]:
    """Return what a token is called: its own text where the tokenizer is known, else its id."""
    if spec.tokenizer not in ("auto", "bytes", "characters"):
        tokenizer, _ = tokenizer_of(source.name, spec.tokenizer)
    elif spec.tokenizer == "auto" and own.tokenizer is not None:
        tokenizer = read_tokenizer(source.name, own.tokenizer)
    else:
        return str
    return lambda each: tokenizer.id_to_token(each) or str(each)


def captions_of(found: Examples, chosen: Array) -> tuple[Caption, ...]:
    """Return the captions of chosen examples; () where they have none."""
    return tuple(found.captions[int(each)] for each in chosen) if found.captions else ()

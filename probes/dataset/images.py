"""Read images from a zip or a folder: one folder for each class, or a list of labels or captions beside them.

Only the chosen images are opened; nothing is unpacked to disk.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from probes.dataset.captions import is_caption_list
from probes.dataset.examples import Examples, Own, Taken
from probes.dataset.files import Array, Source, shown
from probes.dataset.label_lists import LabelList, is_label_list, read_label_list
from probes.dataset.pairs import read_pairs
from probes.dataset.pictures import MAX_IMAGE_BYTES, stack
from probes.dataset.splits import SPLITS, choose_split
from probes.dataset.trees import Tree, tree_of
from probes.errors import DataError
from probes.specs import DataSpec

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def is_image_name(name: str) -> bool:
    """Tell whether a file is an image by its name."""
    return PurePosixPath(name).suffix.lower() in ENDINGS


def read_images(source: Source, spec: DataSpec, own: Own) -> Examples:
    """Read a zip or a folder; classes are the sorted folder names, or what labels.csv says; or there are captions.

    Folders named after splits (train, test, ...) around the classes are one of them, `spec.split`.
    """
    tree = tree_of(source)
    members = [each for each in tree.names if is_image_name(each)]
    if not members:
        raise DataError(
            f"{source.name} holds no PNG, JPEG or WebP images. Put them in one folder for each class, or beside a "
            "labels.csv."
        )
    split, splits, doubts = _split(source, spec, tree.names)
    if split:
        members = [each for each in members if _below(each, split)]
    below = [each for each in tree.names if not split or _below(each, split)]
    captions = [each for each in below if is_caption_list(each)]
    lists = captions or [each for each in below if is_label_list(each)]
    if len(lists) > 1:
        named = ", ".join(map(shown, lists[:4]))
        raise DataError(f"{source.name} holds {len(lists)} lists of {_what(captions)} ({named}). Keep one.")
    if captions:
        made = read_pairs(tree, captions[0], members, spec, own)
    else:
        made = _listed(tree, members, lists[0], spec) if lists else _by_folder(tree, members)
    about = {"split": PurePosixPath(split).name, "splits": splits} if splits else {}
    return replace(made, doubts=(*doubts, *made.doubts), about={**made.about, **about})


def _what(captions: list[str]) -> str:
    return "captions" if captions else "labels"


def _listed(tree: Tree, members: list[str], list_: str, spec: DataSpec) -> Examples:
    found = read_label_list(tree, list_, members, spec.label)
    return replace(_examples(tree, list(found.images), "labels.csv"), labels=found.labels, about=_about(found))


def _about(found: LabelList) -> dict[str, list[str] | str]:
    return {"label": found.label, "not_used": list(found.not_used)}


def _by_folder(tree: Tree, members: list[str]) -> Examples:
    owners, classes = _classes(tree.source, members)
    index = {each: place for place, each in enumerate(classes)}
    names = tuple(map(shown, classes))
    if len(set(names)) != len(names):
        raise DataError(f"{tree.source.name} has classes whose names look the same. Rename the folders.")
    return replace(
        _examples(tree, members, "by class"),
        labels=np.array([index[each] for each in owners], np.int64),
        classes=names,
        doubts=(f"all images are in one class, {names[0]!r}",) if len(names) == 1 else (),
    )


def _examples(tree: Tree, members: list[str], how: str) -> Examples:
    names = [shown(each.encode(errors="surrogateescape").decode(errors="replace")) for each in members]

    def take(chosen: Array) -> Taken:
        indices = [int(each) for each in chosen]
        contents = tree.contents((members[each] for each in indices), MAX_IMAGE_BYTES)
        return stack(tree.source.name, [names[each] for each in indices], contents)

    kind = "folder" if tree.source.path.is_dir() else "zip"
    return Examples(
        format=f"{kind} of images", kind="images", count=len(members), take=take, name_of=names.__getitem__,
        about={"labels": how},
    )  # fmt: skip


def _split(source: Source, spec: DataSpec, names: tuple[str, ...]) -> tuple[str, list[str], tuple[str, ...]]:
    """Return the folder of the chosen split ("" where there are none), the names of all, and doubts.

    Splits are folders with these names that lie side by side and hold all images.
    """
    images = [PurePosixPath(each).parts for each in names if is_image_name(each)]
    level = len(list(itertools.takewhile(_is_shared, zip(*(each[:-1] for each in images), strict=False))))
    tops = {each[level] if len(each) > level + 1 else "" for each in images}
    if not tops or not all(each.lower() in SPLITS for each in tops):
        return _without(source, spec)
    deep = all(len(each) > level + 2 for each in images)
    lists = [PurePosixPath(each).parts for each in names if is_label_list(each) or is_caption_list(each)]
    listed = {each[level] for each in lists if len(each) == level + 2}
    if not deep and not tops <= listed:
        return _without(source, spec)
    chosen, doubts = choose_split(source.name, sorted(tops), spec.split)
    return "/".join((*images[0][:level], chosen)), sorted(tops), doubts


def _without(source: Source, spec: DataSpec) -> tuple[str, list[str], tuple[str, ...]]:
    if spec.split:
        raise DataError(f"{source.name} has no splits, but {spec.split!r} was asked for. Leave the split empty.")
    return "", [], ()


def _below(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


def _classes(source: Source, members: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Find the folder level that holds the classes: directly below what all images share."""
    folders = [PurePosixPath(each).parent.parts for each in members]
    if min(len(each) for each in folders) == 0:
        loose = shown(members[[len(each) for each in folders].index(0)])
        raise DataError(
            f"{source.name}: {loose!r} lies in no class. Put the images in one folder for each class, or add a "
            "labels.csv with the columns file and label."
        )
    shared = len(list(itertools.takewhile(_is_shared, zip(*folders, strict=False))))
    depth = min(shared, min(len(each) for each in folders) - 1)
    if max(len(each) for each in folders) > depth + 1:
        tops = sorted({each[depth] for each in folders})
        raise DataError(
            f"{source.name} has folders inside of its folders {', '.join(repr(shown(each)) for each in tops[:5])}. "
            "Give one split only, with one folder for each class."
        )
    owners = [each[depth] for each in folders]
    return owners, tuple(sorted(set(owners)))


def _is_shared(level: tuple[str, ...]) -> bool:
    return len(set(level)) == 1

"""Folders of images as random-access sources."""

from __future__ import annotations

import difflib
import functools
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Literal, TypedDict

import numpy as np

from must_jax.errors import UserError

IMAGE_SUFFIXES = (
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)

Labels = Literal["auto", "required"]


class Record(TypedDict):
    """One image of a source, not yet read."""

    path: str
    record: int
    label: int | None


class ImageFolder:
    """The images in a folder and everything below it, in the order of their paths.

    Image files are told by their suffix (`IMAGE_SUFFIXES`, in any case); files and folders whose
    names start with a dot are left out. The order depends on the names alone, not on the file
    system. Nothing is decoded here.

    Attributes:
        path: The folder.
        class_names: The classes, or None.
        labels: int32 (number of images,), the class of each image; None for an unlabelled source.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        class_names: Sequence[str] | None = None,
        class_folders: Sequence[str] | None = None,
        labels: Labels = "auto",
    ):
        """Lists the folder.

        Args:
            path: Folder with images: flat, nested, or with one sub-folder per class.
            class_names: Names of the classes in the order of their labels. A sub-folder belongs to
                the class of its name, where case does not count and `_`, `-`, `/` and spaces are
                the same.
            class_folders: Names of the classes' sub-folders in the order of their labels, where
                they are not the class names (as the WordNet ids of ImageNet are not).
            labels: "required": every image lies in a class's sub-folder, and all else is an error;
                "auto": labelled if every image lies in a class's sub-folder, else unlabelled.

        Raises:
            UserError: The folder is missing, not a folder, unreadable, or has no images; labels are
                required and an image has none; two classes share a folder.
        """
        self.path = os.path.abspath(os.path.expanduser(path))
        self.class_names = None if class_names is None else tuple(class_names)
        if not os.path.exists(self.path):
            raise UserError(f"image folder {self.path} does not exist")
        if not os.path.isdir(self.path):
            raise UserError(f"{self.path} is not a folder; give the folder that holds the images")
        self._paths = sorted(_image_paths(self.path))
        if not self._paths:
            endings = " ".join(IMAGE_SUFFIXES)
            raise UserError(f"no images in {self.path} or below it (looked for {endings})")
        self.labels = self._read_labels(class_folders, labels)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        label = None if self.labels is None else int(self.labels[index])
        return {"path": self.path_of(index), "record": int(index), "label": label}

    def __repr__(self) -> str:
        return f"ImageFolder({self.path!r}, {len(self)} images)"

    def path_of(self, index: int) -> str:
        """Full path of the image with this record index."""
        return os.path.join(self.path, self._paths[index])

    def _read_labels(
        self, class_folders: Sequence[str] | None, labels: Labels
    ) -> np.ndarray | None:
        if self.class_names is None:
            if labels == "required":
                raise UserError(f"labels for {self.path} need class names, and there are none")
            return None
        if labels == "auto" and not all("/" in path for path in self._paths):
            return None
        class_of = _class_of_folder(self.class_names, class_folders)
        found = np.empty(len(self), np.int32)
        for index, path in enumerate(self._paths):
            folder, separator, _ = path.partition("/")
            label = class_of.get(_key(folder)) if separator else None
            if label is not None:
                found[index] = label
            elif labels == "auto":
                return None
            elif separator:
                near = difflib.get_close_matches(_key(folder), class_of, n=1, cutoff=0)[0]
                expected = (class_folders or self.class_names)[class_of[near]]
                raise UserError(
                    f"folder {folder!r} in {self.path} is not a class; nearest: {expected!r}"
                )
            else:
                raise UserError(f"{self.path_of(index)} is in no class's folder, so has no label")
        return found


def _class_of_folder(
    class_names: Sequence[str], class_folders: Sequence[str] | None
) -> dict[str, int]:
    folders = class_names if class_folders is None else class_folders
    if len(folders) != len(class_names):
        raise UserError(f"{len(folders)} class folders for {len(class_names)} class names")
    class_of: dict[str, int] = {}
    for label, folder in enumerate(folders):
        first = class_of.setdefault(_key(folder), label)
        if first != label:
            raise UserError(
                f"classes {first} ({folders[first]!r}) and {label} ({folder!r}) share a folder name"
            )
    return class_of


@functools.cache
def _key(name: str) -> str:
    # Some file systems store accented letters decomposed, whatever was typed.
    return re.sub(r"[\s_/-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()


def _image_paths(root: str) -> Iterator[str]:
    """Paths of the images below `root`, relative to it, with forward slashes."""
    # With each folder, the folders that it lies in: a link to one of them would never end.
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset([os.path.realpath(root)]))]
    while pending:
        folder, above = pending.pop()
        full = os.path.join(root, folder)
        try:
            with os.scandir(full) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        real = os.path.realpath(entry.path)
                        if real not in above:
                            pending.append((path, above | {real}))
                    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                        yield path
        except OSError as error:
            raise UserError(f"cannot read folder {full}: {error.strerror}") from error

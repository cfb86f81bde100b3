"""Folders of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np

from must_jax.data import files
from must_jax.data.sources.classes import Classes, Labels
from must_jax.data.sources.source import read_image_file
from must_jax.data.sources.strings import Strings
from must_jax.errors import UserError, reason

IMAGE_SUFFIXES = (
    ".avif",
    ".bmp",
    ".dib",
    ".gif",
    ".jfif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


MAX_REVISITS = 10_000  # of folders that links lead to once more


class ImageFolder:
    """The images in a folder and everything below it, in the order of their paths.

    Image files are told by their suffix (`IMAGE_SUFFIXES`, in any case); files and folders whose
    names start with a dot are left out. The order depends on the names alone, not on the file
    system. Nothing is decoded here.

    Attributes:
        path: The folder.
        labels: int32 (number of images,), the class of each image; None for an unlabelled source.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        classes: Classes | None = None,
        labels: Labels = "auto",
    ):
        """Lists the folder.

        Args:
            path: Folder with images: flat, nested, or with one sub-folder per class; a path, or a
                URL such as `gs://bucket/images`.
            classes: A sub-folder belongs to the class whose folder it is, or whose name it has.
            labels: "required": every image lies in a class's sub-folder, and all else is an error;
                "auto": labelled if every image lies in a class's sub-folder, else unlabelled.

        Raises:
            UserError: The folder is missing, not a folder, unreadable, or has no images; labels are
                required and an image has none.
        """
        self.path = files.absolute(path)
        if not files.is_folder(self.path):
            what = "is not a folder" if files.exists(self.path) else "does not exist"
            raise UserError(f"{self.path} {what}; give the folder that holds the images")
        find = _remote_paths if files.is_remote(self.path) else _local_paths
        self._paths = Strings(sorted(find(self.path)))
        if not self._paths:
            endings = " ".join(IMAGE_SUFFIXES)
            raise UserError(f"no images in {self.path} or below it (looked for {endings})")
        self.labels = self._read_labels(classes, labels)

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"ImageFolder({self.path!r}, {len(self)} images)"

    def name_of(self, record: int) -> str:
        """Full path of the image with this record index."""
        return f"{self.path}/{self._paths[record]}"

    def read(self, record: int) -> bytes:
        """The bytes of the file.

        Raises:
            UndecodableImageError: It is missing or can't be read.
        """
        return read_image_file(self.name_of(record))

    def _read_labels(self, classes: Classes | None, labels: Labels) -> np.ndarray | None:
        if classes is None:
            return None
        if labels == "auto" and not all("/" in path for path in self._paths):
            return None
        found = np.empty(len(self), np.int32)
        for record, path in enumerate(self._paths):
            folder, separator, _ = path.partition("/")
            label = classes.find(folder) if separator else None
            if label is not None:
                found[record] = label
            elif labels == "auto":
                return None
            elif separator:
                raise UserError(
                    f"folder {folder!r} in {self.path} is not a class; nearest: "
                    f"{classes.nearest(folder)!r}"
                )
            else:
                raise UserError(f"{self.name_of(record)} is in no class's folder, so has no label")
        return found


def _remote_paths(root: str) -> Iterable[str]:
    try:
        listed = files.remote_files(root)
    except OSError as error:
        raise UserError(f"cannot read folder {root}: {reason(error)}") from error
    for path in listed:
        hidden = any(part.startswith(".") for part in path.split("/"))
        if not hidden and path.lower().endswith(IMAGE_SUFFIXES):
            yield path


def _local_paths(root: str) -> Iterator[str]:
    """Paths of the images below `root`, relative to it, with forward slashes."""
    # With each folder, where it really is; None once all that is in it has been listed.
    pending: list[tuple[str | None, str]] = [("", os.path.realpath(root))]
    above: set[str] = set()  # the folders that this one lies in: a link to one would never end
    seen: set[str] = set()
    revisits = 0
    while pending:
        folder, place = pending.pop()
        if folder is None:
            above.remove(place)
            continue
        above.add(place)
        pending.append((None, place))
        full = os.path.join(root, folder)
        try:
            with os.scandir(full) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if _is_folder(entry):
                        real = os.path.join(place, entry.name)
                        if entry.is_symlink():
                            real = os.path.realpath(entry.path)
                        revisits += real in seen
                        seen.add(real)
                        if revisits > MAX_REVISITS:
                            raise UserError(
                                f"{root}: links lead to the same folders more than "
                                f"{MAX_REVISITS:,} times, such as {path}; remove them"
                            )
                        if real not in above:
                            pending.append((path, real))
                    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                        yield path
        except OSError as error:
            raise UserError(f"cannot read folder {full}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    # A link in a circle is an image that can't be read, if its name is one's.
    except OSError:
        return False

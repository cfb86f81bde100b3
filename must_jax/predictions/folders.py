"""A folder a class, with the images that were taken for it."""

from __future__ import annotations

import filecmp
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from must_jax.data.decode import UndecodableImageError, open_image
from must_jax.data.sources import IMAGE_SUFFIXES, Source
from must_jax.data.sources.source import MAX_IMAGE
from must_jax.errors import UserError
from must_jax.local_files import (
    MAX_TEXT,
    local_path,
    open_to_write,
    read_bytes,
    refuse_link,
    replace_file,
)
from must_jax.predictions.rows import readable

MARK = ".must_jax_sorting"  # while a folder is being filled
_LONGEST = 150  # bytes of a name, of the 255 that file systems take, the rest for what is added


class ClassFolders:
    """Puts images into `FOLDER/CLASS/NAME`: hard links, or copies where there can't be any.

    Nothing is overwritten, and nothing is written outside of the folder, whatever classes and
    images are called.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        class_names: Sequence[str],
        facts: Mapping[str, Any],
        has_begun: bool,
    ):
        """Makes the folder, or goes on with one that the same facts were filling.

        Args:
          folder: that the folders of the classes go into.
          class_names: K.
          facts: what predictions depend on, JSON values.
          has_begun: whether some images are in it already.

        Raises:
          UserError: there is something else in it, or what was there is gone, or it can't be
            written.
        """
        advice = "copy the folder when it is complete"
        self._folder = pathlib.Path(local_path(folder, called="--sort_into", advice=advice))
        self._names = folder_names(class_names)
        self._mark = self._folder / MARK
        self._temporary = self._folder / f"{MARK}.tmp"
        try:
            if not has_begun:
                self._folder.mkdir(parents=True, exist_ok=True)
            now = json.dumps(facts, sort_keys=True)
            is_marked = (
                self._mark.exists() and read_bytes(self._mark, limit=MAX_TEXT) == now.encode()
            )
            has_some = self._folder.exists() and any(
                not path.name.startswith(MARK) for path in self._folder.iterdir()
            )
            if is_marked and (has_some or not has_begun):
                return
            if has_begun:
                raise UserError(
                    f"--sort_into={folder} has lost the images that were sorted into it before; "
                    "bring it back, or start anew with another --output"
                )
            if has_some:
                raise UserError(f"--sort_into={folder} is not empty; give a new folder")
            replace_file(self._mark, now.encode())
        except OSError as error:
            raise self._refusal(error) from error

    def place(self, label: int, *, record: int, source: Source) -> None:
        """Puts an image into its class's folder. The same call again changes nothing.

        An image whose name is taken by another one gets its record's number behind it.

        Args:
          label: of its class.
          record: its number in the source.
          source: gives its bytes where it is no local file.

        Raises:
          UserError: it can't be read any more, or not be written.
        """
        name = source.name_of(record)
        try:
            data = None if os.path.isfile(name) else source.read(record)
        except UndecodableImageError as error:
            raise UserError(f"{error}; start the same command again") from error
        stem, ending = os.path.splitext(re.split(r"[/\\:]", name)[-1] if data else name)
        if data is not None and ending.lower() not in IMAGE_SUFFIXES:
            stem, ending = f"{stem}{ending}", f".{(open_image(data).format or 'img').lower()}"
        stem, ending = safe_name(os.path.basename(stem)), ending and f".{safe_name(ending[1:])}"
        folder = self._folder / self._names[label]
        try:
            refuse_link(folder)
            folder.mkdir(exist_ok=True)
            for target in (folder / f"{stem}{ending}", folder / f"{stem}~{record}{ending}"):
                if not os.path.lexists(target):
                    self._write(target, os.path.realpath(name), data)
                    return
                if _same(target, name, data):
                    return
        except OSError as error:
            raise self._refusal(error) from error
        raise UserError(f"{target} is there already, and is another image than {name}")

    def finish(self) -> None:
        """The folder is complete."""
        self._temporary.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)

    def _write(self, target: pathlib.Path, path: str, data: bytes | None) -> None:
        if data is None:
            try:
                os.link(path, target)
                return
            except OSError:  # another file system, or one without links, or not permitted
                data = read_bytes(path, limit=MAX_IMAGE)
        with open_to_write(self._temporary, "wb") as file:
            file.write(data)
        self._temporary.rename(target)

    def _refusal(self, error: OSError) -> UserError:
        return UserError(f"{error.filename or self._folder} cannot be written ({error.strerror})")


def folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder's name for each class, all different also where case does not count."""
    names: list[str] = []
    taken: set[str] = set()
    tried: dict[str, int] = {}  # the last number behind a name, as all before it are taken
    for name in class_names:
        safe = free = safe_name(name)
        number = tried.get(safe.casefold(), 1)
        while free.casefold() in taken:
            number += 1
            free = f"{safe} ({number})"
        tried[safe.casefold()] = number
        taken.add(free.casefold())
        names.append(free)
    return names


def safe_name(name: str) -> str:
    """A name for one file or folder: no separators, none that is hidden or stands for another."""
    clean = re.sub(r'[/\\:*?"<>|]', "_", readable(name))
    clean = "".join(c if c.isprintable() else "_" for c in clean)
    clean = clean.encode()[:_LONGEST].decode(errors="ignore").rstrip(". ")
    return f"_{clean}" if clean[:1] in ("", ".") else clean


def _same(target: pathlib.Path, path: str, data: bytes | None) -> bool:
    if data is not None:
        return target.is_file() and target.read_bytes() == data
    return os.path.samefile(target, path) or filecmp.cmp(target, path, shallow=False)

"""The classes: their names, synonyms and the data set's own labels."""

import dataclasses
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from must_jax.class_names.files import Entry, read_entries
from must_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClassNames:
    """Class names in the order of their labels.

    Attributes:
      synonyms: all names of each class, the one to show first.
      folders: what the data set itself calls the classes (folder names, TFDS labels), in the same
        order, where the file gives them.
    """

    synonyms: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The first name of each class."""
        return tuple(names[0] for names in self.synonyms)


def read_class_names(path: str | os.PathLike) -> ClassNames:
    """The classes in a UTF-8 file, in the order of their labels.

    Text: `name`, or `folder<TAB>name` and any number of `<TAB>synonym`, on each line; blank lines
    and lines that start with `#` are passed over. JSON (`.json`) and YAML (`.yaml`, `.yml`): a list
    of names, or of lists of synonyms, or a mapping of folder to either.

    Raises:
      UserError: the file is unreadable or empty, a name or a folder is given twice, a class has no
        name, or only some lines name a folder.
    """
    path = Path(path)
    entries = read_entries(path, what="class names", columns=True)
    with_folder = entries[0].key is not None
    for entry in entries:
        if (entry.key is not None) != with_folder:
            raise UserError(
                f"{entry.place}: expected "
                + ("folder<TAB>name" if with_folder else "a name alone")
                + " as on the lines before"
            )
        if not entry.texts:
            raise UserError(f"{entry.place}: a class without a name")
    _refuse_duplicates([(e, name) for e in entries for name in e.texts], what="class name")
    folders = [(entry, entry.key) for entry in entries if entry.key is not None]
    _refuse_duplicates(folders, what="folder")
    return ClassNames(
        synonyms=tuple(entry.texts for entry in entries),
        folders=tuple(folder for _, folder in folders) if with_folder else None,
    )


def plain(name: str) -> str:
    """A name as text towers read it: composed, in lower case, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def _refuse_duplicates(values: Sequence[tuple[Entry, str]], *, what: str) -> None:
    seen: dict[str, tuple[Entry, str]] = {}
    for entry, value in values:
        same = plain(value)
        if same in seen:
            first, written = seen[same]
            spelling = "" if written == value else f", as {written!r}"
            raise UserError(
                f"{entry.place}: {what} {value!r} is {first.where} already{spelling}; every class "
                "needs its own"
            )
        seen[same] = entry, value

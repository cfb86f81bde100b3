"""Reads class names and prompt templates, one a line."""

import dataclasses
import os
from pathlib import Path

from must_jax.errors import UserError

SLOT = "{}"


@dataclasses.dataclass(frozen=True)
class ClassNames:
    """Class names in the order of their labels.

    `folders` are the names of the classes' folders, in the same order, where the file gives them.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...] | None = None


def _lines(path: Path, *, what: str) -> list[tuple[int, str]]:
    """The numbered lines of a text file that are neither blank nor a `#` comment."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the file in that encoding") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    numbered = enumerate((line.strip() for line in text.split("\n")), start=1)
    lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not lines:
        raise UserError(f"{path}: no {what}; expected one a line")
    return lines


def _refuse_duplicates(values: list[tuple[int, str]], *, path: Path, what: str) -> None:
    seen: dict[str, int] = {}
    for number, value in values:
        if value in seen:
            raise UserError(
                f"{path}:{number}: {what} {value!r} is on line {seen[value]} already; "
                "every class needs its own"
            )
        seen[value] = number


def read_class_names(path: str | os.PathLike) -> ClassNames:
    """The class names in a UTF-8 file: `name` or `folder<TAB>name` on each line.

    Blank lines and lines that start with `#` are passed over.

    Raises:
      UserError: the file is unreadable or empty, a name or a folder is given twice, or only some
        lines name a folder.
    """
    path = Path(path)
    lines = _lines(path, what="class names")
    with_folder = "\t" in lines[0][1]
    folders, names = [], []
    for number, line in lines:
        folder, _, name = (part.strip() for part in line.partition("\t"))
        if ("\t" in line) != with_folder or (with_folder and not name):
            raise UserError(
                f"{path}:{number}: expected "
                + ("folder<TAB>name" if with_folder else "a name alone")
                + " as on the lines before"
            )
        if "\t" in name:
            raise UserError(f"{path}:{number}: more than one tab; expected folder<TAB>name")
        folders.append((number, folder))
        names.append((number, name if with_folder else folder))
    _refuse_duplicates(names, path=path, what="class name")
    if with_folder:
        _refuse_duplicates(folders, path=path, what="folder")
    return ClassNames(
        names=tuple(name for _, name in names),
        folders=tuple(folder for _, folder in folders) if with_folder else None,
    )


def read_templates(path: str | os.PathLike) -> tuple[str, ...]:
    """The prompt templates in a UTF-8 file, one a line, each with one `{}` for the class name.

    Raises:
      UserError: the file is unreadable or empty, a template hasn't one slot.
    """
    path = Path(path)
    lines = _lines(path, what="templates")
    for number, line in lines:
        if line.count(SLOT) != 1:
            raise UserError(
                f"{path}:{number}: template {line!r} has {line.count(SLOT)} slots; "
                f"write {SLOT} once, where the class name goes"
            )
    return tuple(line for _, line in lines)

"""Sentences that describe each class, such as a language model writes."""

import os
import re
from pathlib import Path

from must_jax.class_names.files import read_entries
from must_jax.class_names.names import ClassNames, plain
from must_jax.class_names.spelling import nearest
from must_jax.errors import UserError

Descriptions = tuple[tuple[str, ...], ...]
NAMED = 5  # of the classes or keys at fault


def read_descriptions(path: str | os.PathLike, *, classes: ClassNames) -> Descriptions:
    """The descriptions of every class, in the order of their labels.

    The file is JSON of CuPL's form, `{"class name": ["sentence", ...], ...}`, or the same in YAML.
    A key is a name, a synonym or a folder of the class; case does not count, and `_`, `-`, `/` and
    spaces are the same.

    Raises:
      UserError: the file is unreadable or no such mapping, a class has no descriptions, or a key is
        no class's, two classes' or the second of its class.
    """
    path = Path(path)
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise UserError(f"{path}: expected a .json or .yaml file of class names to sentences")
    entries = read_entries(path, what="descriptions", columns=False)
    labels = _labels_by_key(classes)
    found: dict[int, tuple[str, tuple[str, ...]]] = {}
    unknown = []
    for entry in entries:
        if entry.key is None:
            raise UserError(f"{entry.place}: expected a class name and its sentences, not a list")
        of_key = labels.get(_loose(entry.key), frozenset())
        if len(of_key) > 1:
            names = " and ".join(repr(classes.names[label]) for label in sorted(of_key))
            raise UserError(f"{entry.place}: {entry.key!r} stands for the classes {names}")
        for label in of_key:
            if label in found:
                raise UserError(
                    f"{entry.place}: {classes.names[label]!r} is described under "
                    f"{found[label][0]!r} already"
                )
            found[label] = entry.key, entry.texts
        if not of_key:
            unknown.append(entry.key)
    if unknown:
        near = nearest(_loose(unknown[0]), labels)
        raise UserError(
            f"{path}: no class is called {_listed(unknown)}; nearest to the first: "
            f"{classes.names[min(labels[near])]!r}"
        )
    missing = [
        name
        for label, name in enumerate(classes.names)
        if label not in found or not found[label][1]
    ]
    if missing:
        raise UserError(f"{path}: no descriptions of {_listed(missing)}; every class needs some")
    return tuple(found[label][1] for label in range(len(classes.names)))


def _labels_by_key(classes: ClassNames) -> dict[str, frozenset[int]]:
    labels: dict[str, frozenset[int]] = {}
    for label, names in enumerate(classes.synonyms):
        folder = () if classes.folders is None else (classes.folders[label],)
        for name in (*names, *folder):
            labels[_loose(name)] = labels.get(_loose(name), frozenset()) | {label}
    return labels


def _loose(name: str) -> str:
    return re.sub(r"[\s_/-]+", " ", plain(name)).strip()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more

"""Text, JSON and YAML files as entries that know where they stand."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

from must_jax.class_names.spelling import MAX_MARKS, has_endless_marks
from must_jax.errors import UserError
from must_jax.local_files import read_text

MAX_DEPTH = 2  # a list or mapping, and the lists in it
MAX_LETTERS = 10_000  # of one text; text towers read some hundred
MAX_TEXTS = 2**20  # of a file, keys among them; each takes some 400 bytes
# Of YAML, which is read letter by letter: two seconds for each MiB, or for 40,000 texts and lists.
MAX_YAML = 2**22
MAX_YAML_NODES = 2**17
# Strings, and what comes before any other value in a list or a mapping.
_JSON_PARTS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[,\[{]', re.DOTALL)
_PARTS_OF_TEXT = 3  # at most, where lists have one text each: a bracket, a string, a comma


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One entry of a file, of one or more texts.

    Attributes:
      place: path and line, item or key, as an error starts.
      where: likewise, as an error on a later entry refers to it.
      key: of a mapping, or the first of a line's columns; else None.
      texts: stripped, none of them empty.
    """

    place: str
    where: str
    key: str | None
    texts: tuple[str, ...]


def read_entries(path: Path, *, what: str, columns: bool) -> list[Entry]:
    """The entries of a UTF-8 file: JSON or YAML by its ending, else one a line.

    JSON and YAML hold a list or a mapping, whose values are a text or a list of texts. In other
    files blank lines and lines that start with `#` are passed over.

    Args:
      path: of the file.
      what: the file holds, for messages.
      columns: whether a tab in a line ends the key, or a text.

    Raises:
      UserError: the file is unreadable, empty, too large, or holds anything else.
    """
    try:
        text = read_text(path, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the file in that encoding") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a path with a NUL
        raise UserError(f"{path}: no usable path ({error})") from error
    suffix = path.suffix.lower()
    if suffix == ".json":
        entries = _json_entries(path, text)
    elif suffix in (".yaml", ".yml"):
        entries = _yaml_entries(path, text)
    else:
        entries = _line_entries(path, text, columns=columns)
    if not entries:
        raise UserError(f"{path}: no {what} in it")
    return entries


def _check_count(path: Path, count: int) -> None:
    if count > MAX_TEXTS:
        raise UserError(f"{path}: more than {MAX_TEXTS:,} texts; split the file, or drop some")


def _line_entries(path: Path, text: str, *, columns: bool) -> list[Entry]:
    # Blank lines and comments count too: before the lines are made, nobody knows which they are.
    _check_count(path, text.count("\n") + (text.count("\t") if columns else 0))
    entries = []
    for number, line in enumerate((line.strip() for line in text.split("\n")), start=1):
        if not line or line.startswith("#"):
            continue
        key, *texts = line.split("\t") if columns and "\t" in line else (None, line)
        place = f"{path}:{number}"
        entries.append(_entry(place=place, where=f"on line {number}", key=key, texts=texts))
    return entries


class _Mapping(list):
    """The pairs of a JSON object, a repeated key's included."""


def _json_entries(path: Path, text: str) -> list[Entry]:
    limit = _PARTS_OF_TEXT * MAX_TEXTS
    parts = sum(1 for _ in itertools.islice(_JSON_PARTS.finditer(text), limit + 1))
    _check_count(path, MAX_TEXTS + 1 if parts > limit else 0)
    try:
        content = json.loads(text, object_pairs_hook=_Mapping)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # thousands of digits, or of lists in lists
        raise UserError(f"{path}: not JSON that can be read ({error})") from error
    pairs: list[tuple[str | None, Any]]
    if isinstance(content, _Mapping):
        pairs = content
    elif isinstance(content, list):
        pairs = [(None, value) for value in content]
    else:
        raise UserError(f"{path}: expected a list or a mapping, it is {content!r:.40}")
    keys = len(pairs) if isinstance(content, _Mapping) else 0
    _check_count(path, keys + sum(len(v) if type(v) is list else 1 for _, v in pairs))
    entries = []
    for number, (key, value) in enumerate(pairs, start=1):
        where = f"item {number}" if key is None else f"key {key!r}"
        entries.append(
            _entry(
                place=f"{path}: {where}",
                where=f"in {where}",
                key=key,
                texts=value if type(value) is list else [value],
            )
        )
    return entries


def _yaml_entries(path: Path, text: str) -> list[Entry]:
    """Entries of the document's nodes, whose scalars are taken as they are written.

    So a class may be called `no`, `1` or `null`, which YAML's types would make something else of.
    """
    import yaml

    def place(mark: Any) -> str:
        return f"{path}:{mark.line + 1}" if mark else f"{path}"

    class Loader(yaml.BaseLoader):
        """Composes no more than is asked for, and nothing twice."""

        nodes = depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            # A few aliases to aliases would stand for billions of names.
            if isinstance(event, yaml.AliasEvent):
                raise UserError(
                    f"{place(event.start_mark)}: alias *{event.anchor}; write its value out"
                )
            self.nodes += 1
            if self.nodes > MAX_YAML_NODES:
                raise UserError(
                    f"{place(event.start_mark)}: more than {MAX_YAML_NODES:,} texts and lists, "
                    "which YAML takes long to read; write them as JSON"
                )
            # Depth takes long to read.
            self.depth += isinstance(event, yaml.CollectionStartEvent)
            if self.depth > MAX_DEPTH:
                raise UserError(f"{place(event.start_mark)}: expected a text")
            node = super().compose_node(parent, index)
            self.depth -= isinstance(event, yaml.CollectionStartEvent)
            return node

    if len(text) > MAX_YAML:
        raise UserError(
            f"{path}: larger than {MAX_YAML >> 20} MiB, which YAML takes long to read; write it as "
            "JSON"
        )
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        raise UserError(
            f"{place(error.problem_mark)}: not YAML ({error.problem or error.context})"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({error})") from error

    if root is None:
        return []
    if isinstance(root, yaml.SequenceNode):
        pairs = [(None, node) for node in root.value]
    elif isinstance(root, yaml.MappingNode):
        pairs = root.value
    else:
        raise UserError(f"{path}: expected a list or a mapping, it is {root.value!r:.40}")
    entries = []
    for key, node in pairs:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for part in [*nodes, *([] if key is None else [key])]:
            if not isinstance(part, yaml.ScalarNode):
                raise UserError(f"{place(part.start_mark)}: expected a text")
        mark = (key or node).start_mark
        entries.append(
            _entry(
                place=place(mark),
                where=f"on line {mark.line + 1}",
                key=key and key.value,
                texts=[part.value for part in nodes],
            )
        )
    return entries


def _entry(*, place: str, where: str, key: str | None, texts: list[Any]) -> Entry:
    """Checks what a person wrote."""
    for text in texts if key is None else [key, *texts]:
        if not isinstance(text, str):
            raise UserError(f"{place}: expected a text in quotes, it is {text!r:.40}")
        if not text.strip():
            raise UserError(f"{place}: empty text")
        if len(text) > MAX_LETTERS:
            raise UserError(f"{place}: a text of {len(text)} letters; {MAX_LETTERS} are the most")
        if has_endless_marks(text):
            raise UserError(
                f"{place}: more than {MAX_MARKS} combining marks in a row, of which no letter is "
                "made; remove them"
            )
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise UserError(f"{place}: {text!r} has half a character (a lone surrogate)")
    return Entry(
        place=place,
        where=where,
        key=None if key is None else key.strip(),
        texts=tuple(text.strip() for text in texts),
    )

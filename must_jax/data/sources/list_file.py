"""Lists of image files: CSV, TSV, Parquet."""

from __future__ import annotations

import os
from typing import Any

from must_jax.data import files
from must_jax.data.decode import UndecodableImageError
from must_jax.data.remote import NoFileSystemError
from must_jax.data.sources.classes import Classes, Labels, index_labels
from must_jax.data.sources.fields import IMAGE_FIELDS, LABEL_FIELDS, find_field, no_image_field
from must_jax.data.sources.parquet_cells import parquet_cells
from must_jax.data.sources.source import read_image_file
from must_jax.data.sources.strings import Strings
from must_jax.data.sources.text_list import MAX_SHARE, Columns, read_text_list
from must_jax.errors import UserError, reason
from must_jax.local_files import machine_memory

_CHAIN = "::"


class ImageList:
    """The images that a list names, in its order. Nothing is looked for before it is read.

    Attributes:
        path: The list.
        labels: int32 (number of images,), or None for an unlabelled source.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image_field: str = "",
        label_field: str = "",
        classes: Classes | None = None,
        labels: Labels = "auto",
    ):
        """Reads the list.

        Args:
            path: A `.csv`, `.tsv` or `.parquet` file, or the URL of one. The paths in it are
                absolute, relative to its folder, or URLs, but no chains of these.
            image_field: Name of the column of paths; empty for a usual one (`IMAGE_FIELDS`).
            label_field: Name of the column of labels, names of classes or integers; empty for a
                usual one (`LABEL_FIELDS`). A column that is named is never passed over.
            classes: What labels are looked up in; None for an unlabelled source.
            labels: "required": every image has a label; "auto": if any has none, none has.

        Raises:
            UserError: The list can't be read, is empty or ill-formed; labels are required, or
                their column named, and one is missing or no class.
        """
        self.path = files.absolute(path)
        try:
            data = files.read_file(self.path, limit=int(MAX_SHARE * machine_memory()))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({reason(error)})") from error
        read = _read_parquet if self.path.lower().endswith(".parquet") else read_text_list
        columns = read(data, path=self.path, image_field=image_field, label_field=label_field)
        if not columns.paths:
            raise UserError(f"{self.path}: no images in this list")
        if columns.labels is None and labels == "required":
            raise UserError(
                f"{self.path}: labels are needed, and no column is called {label_field or 'label'};"
                " say which with config.dataset.label_field"
            )
        self.labels = None
        if columns.labels is not None:
            self.labels = index_labels(
                columns.labels,
                classes=classes,
                labels="required" if label_field else labels,
                where=lambda record: f"{self.path}, row {columns.rows[record]}",
            )
        self._folder = files.parent(self.path)
        self._paths = columns.paths

    def __len__(self) -> int:
        return len(self._paths)

    def name_of(self, record: int) -> str:
        """Full path of the image."""
        return files.join(self._folder, self._paths[record])

    def read(self, record: int) -> bytes:
        """The bytes of the file.

        Raises:
            UndecodableImageError: It is missing, can't be read, is a chain of URLs, or a URL of an
                unknown kind or one whose library is not installed.
        """
        name = self.name_of(record)
        # fsspec's chains read whatever files and devices they say, without end.
        if _CHAIN in self._paths[record] and files.is_remote(name):
            raise UndecodableImageError(name, f"{_CHAIN!r} in a URL, which no list may have")
        try:
            return read_image_file(name)
        # Of one row: the other images may be read all the same.
        except NoFileSystemError as error:
            why = str(error).removeprefix(name).lstrip(": ")
            raise UndecodableImageError(name, why) from error


def _read_parquet(data: bytes, *, path: str, image_field: str, label_field: str) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(pa.BufferReader(data))
        image = find_field(schema.names, named=image_field, usual=IMAGE_FIELDS)
        if image is None:
            raise no_image_field(path, schema.names, named=image_field, what="column")
        label = find_field(schema.names, named=label_field, usual=LABEL_FIELDS)
        types = {name: _stored(schema.field(name).type) for name in (image, label) if name}
        if not (_is_text(types[image]) or pa.types.is_null(types[image])):
            raise UserError(
                f"{path}: column {image!r} has values of type {types[image]}, where a path is "
                "expected; say which column has the paths with config.dataset.image_field"
            )
        if label and not (
            _is_text(types[label])
            or pa.types.is_null(types[label])
            or pa.types.is_integer(types[label])
        ):
            raise UserError(
                f"{path}: column {label!r} has values of type {types[label]}, where a name or an "
                "integer is expected; say which column has the labels with "
                "config.dataset.label_field"
            )
        cells = parquet_cells(data, list(types), texts=[n for n, t in types.items() if _is_text(t)])
    # Beside the library's own: names that are there twice, text that is not UTF-8, damage.
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({error})") from error
    paths = cells[image]
    for row, cell in enumerate(paths, start=1):
        if not cell:
            raise UserError(
                f"{path}, row {row}: column {image!r} has nothing, where a path is expected; say "
                "which column has the paths with config.dataset.image_field"
            )
    return Columns(Strings(paths), cells[label] if label else None, range(1, len(paths) + 1))


def _stored(kind: Any) -> Any:
    """The type of the values, where those that are repeated are stored once."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return kind in (pa.string(), pa.large_string(), pa.string_view())

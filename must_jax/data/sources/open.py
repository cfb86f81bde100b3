"""Which kind of source a path is."""

from __future__ import annotations

import os
import re
from typing import Any

from must_jax.data import files
from must_jax.data.sources.array_record import ArrayRecordShards
from must_jax.data.sources.classes import Classes, Labels
from must_jax.data.sources.folder import ImageFolder
from must_jax.data.sources.list_file import ImageList
from must_jax.data.sources.source import Source
from must_jax.data.sources.tar import TarShards
from must_jax.data.sources.tfds_split import TfdsSplit
from must_jax.errors import UserError, reason

_LIST = re.compile(r"\.(csv|tsv|parquet)$", re.IGNORECASE)
_TAR = re.compile(r"\.tar$", re.IGNORECASE)
_PACKED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz)$", re.IGNORECASE)
_ARRAY_RECORD = re.compile(r"\.array_?record(-\d+-of-\d+)?$", re.IGNORECASE)


def open_source(
    path: str | os.PathLike[str],
    *,
    classes: Classes | None = None,
    labels: Labels = "auto",
    image_field: str = "",
    label_field: str = "",
    tfds: str = "",
    data_dir: str = "",
) -> Source:
    """Opens images by what their path looks like.

    Args:
        path: A folder; a `.csv`, `.tsv` or `.parquet` list; `.tar` or `.array_record` shards, with
            `*`, `{000..012}` or `{a,b}` for many; or with `tfds` a split, such as `train[:90%]`.
            URLs such as `gs://bucket/images` too.
        classes: What labels are looked up in; None for an unlabelled source.
        labels: "required" or "auto": whether images without labels are refused.
        image_field: Column, feature or ending of the image; empty for the usual ones.
        label_field: Column, feature or ending of the label; empty for the usual ones.
        tfds: Name of a TFDS data set, with config and version if need be.
        data_dir: Where TFDS data sets lie, a folder or URL; empty for TFDS's own place.

    Raises:
        UserError: There is nothing of the kind, or it can't be used as it is.
    """
    keywords: dict[str, Any] = {
        "image_field": image_field,
        "label_field": label_field,
        "classes": classes,
        "labels": labels,
    }
    if tfds:
        return TfdsSplit(tfds, os.fspath(path), data_dir=data_dir, **keywords)
    given, path = os.path.expanduser(path), files.absolute(path)
    try:
        if files.is_folder(path):
            return ImageFolder(path, classes=classes, labels=labels)
        # As it was given: the working folder's own name may have brackets.
        found = [files.absolute(file) for file in files.expand(given)]
        if not found:
            raise UserError(f"{path}: no file matches")
        if not files.exists(found[0]):
            raise UserError(f"{found[0]} does not exist")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error
    if len(found) == 1 and _LIST.search(found[0]):
        return ImageList(found[0], **keywords)
    for file in found:
        if _PACKED_TAR.search(file):
            raise UserError(f"{file}: a compressed tar has no random access; unpack it to .tar")
    if all(map(_TAR.search, found)):
        return TarShards(path, found, **keywords)
    if all(map(_ARRAY_RECORD.search, found)):
        return ArrayRecordShards(path, found, **keywords)
    raise UserError(
        f"{found[0]}: neither a folder nor a .csv, .tsv or .parquet list, nor .tar or "
        ".array_record shards" + (f", as all of the {len(found)} must be" if len(found) > 1 else "")
    )

"""Rows in JSON lines as a Parquet file."""

from __future__ import annotations

import itertools
import json
import os
import pathlib

from must_jax.errors import UserError, first_line
from must_jax.local_files import open_to_write
from must_jax.predictions.rows import columns

ROW_GROUP = 1 << 14  # rows, of which two groups are in memory at once


def write_parquet(source: pathlib.Path, path: pathlib.Path, *, top_k: int, num_rows: int) -> None:
    """Makes the Parquet file `path`, whole or not at all, of rows in JSON lines.

    The same rows make the same bytes, in whatever pieces they were written.

    Raises:
      OSError: it can't be written.
      UserError: the lines are not the rows that were written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = columns(top_k)
    types = {
        name: pa.float32() if name.startswith("probability") else pa.string() for name in names
    }
    schema = pa.schema(types)
    temporary = path.with_name(f"{path.name}.tmp")
    found = 0
    try:
        with (
            source.open("rb") as lines,
            open_to_write(temporary, "wb") as file,
            pq.ParquetWriter(file, schema) as writer,
        ):
            while rows := [json.loads(line) for line in itertools.islice(lines, ROW_GROUP)]:
                found += len(rows)
                arrays = [pa.array([row[name] for row in rows], types[name]) for name in names]
                writer.write_table(pa.table(arrays, schema=schema), row_group_size=ROW_GROUP)
        if found != num_rows:
            raise ValueError(f"{found} rows, where {num_rows} were written")
    except (ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{source} is damaged ({first_line(error)}); remove it and {path.name}.progress.json "
            "to start anew"
        ) from error
    os.replace(temporary, path)

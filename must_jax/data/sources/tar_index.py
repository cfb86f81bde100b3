"""Where the files of a tar archive lie in it."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from must_jax.errors import UserError
from must_jax.local_files import MAX_TEXT


class Member(NamedTuple):
    """A file in an archive; `start` counts bytes from the start of the archive."""

    name: str
    start: int
    size: int


def members(file: BinaryIO, *, path: str) -> Iterator[Member]:
    """The files of an uncompressed tar archive, in order.

    Args:
        file: The archive, to seek and read in.
        path: What to call it in messages.

    Raises:
        UserError: It is no tar archive, damaged or cut short, or has links or sparse files.
    """
    end = file.seek(0, 2)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                if archive.offset <= info.offset:
                    raise UserError(f"{path}: damaged within {info.name}, of {info.size} bytes")
                if info.issparse() or info.issym() or info.islnk():
                    raise UserError(
                        f"{path}: {info.name} is a link or sparse; pack it whole (tar "
                        "--dereference)"
                    )
                if not info.isreg():
                    continue
                if info.offset_data + info.size > end:
                    raise UserError(
                        f"{path}: cut short at byte {end}, within {info.name}; copy or pack it "
                        "again"
                    )
                yield Member(info.name, info.offset_data, info.size)
            last = archive.offset
    # What the library says of headers that no program writes.
    except (tarfile.TarError, ValueError, ArithmeticError, MemoryError, RecursionError) as error:
        raise UserError(f"{path}: not an uncompressed tar archive, or damaged ({error})") from error
    file.seek(last)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise UserError(f"{path}: cut short at byte {end}, before the archive's end mark")
    if any(mark):
        raise UserError(f"{path}: damaged at byte {last}; copy or pack it again")


def content(file: BinaryIO, member: Member) -> bytes:
    """All bytes of a small member of the archive.

    Raises:
        ValueError: It is larger than a text is.
    """
    if member.size > MAX_TEXT:
        raise ValueError(f"{member.name}: larger than {MAX_TEXT >> 20} MiB")
    file.seek(member.start)
    return file.read(member.size)

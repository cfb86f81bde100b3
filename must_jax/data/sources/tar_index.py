"""Where the files of a tar archive lie in it."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from must_jax.errors import UserError

MAX_LABEL = 2**20  # bytes of a file with a label; as JSON they may take 25 times as much
# Bytes that tell of a file what its header is too short for: a name, of 4096 at most, attributes.
MAX_EXTENSION = 2**20
_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_SHORTEST = len(b"5 a=\n")  # field, which starts with its own length
_LONGEST_NUMBER = len(str(MAX_EXTENSION))
_MOST_DIGITS = 255  # in a row: as long as a file's name may be, folders aside


class Member(NamedTuple):
    """A file in an archive; `start` counts bytes from the start of the archive."""

    name: str
    start: int
    size: int


class _Header(tarfile.TarInfo):
    """A header that is not believed in all it claims, as the library does."""

    def _proc_member(self, archive: Any) -> Any:
        if self.type in _NAMES + _PAX and not 0 <= self.size <= MAX_EXTENSION:
            raise tarfile.HeaderError(f"an extended header of {self.size} bytes")
        if self.type in _PAX:
            fields = archive.fileobj.read(self.size)
            archive.fileobj.seek(-len(fields), 1)
            _check_fields(fields)
        # For all files that follow: remarks on the archive, of which each would keep a copy.
        if self.type == tarfile.XGLTYPE:
            return self._proc_builtin(archive)  # type: ignore[attr-defined]
        return super()._proc_member(archive)  # type: ignore[misc]

    # What is sparse is marked, to be refused; its map may be as long as the archive.

    def _proc_sparse(self, archive: Any) -> Any:
        self.sparse = b""
        return self._proc_builtin(archive)  # type: ignore[attr-defined]

    def _proc_gnusparse_10(self, info: Any, fields: Any, archive: Any) -> None:
        info.sparse = b""


def _check_fields(fields: bytes) -> None:
    """Refuses those that Python before 3.11.10 takes the square of their length to read."""
    if any(len(digits) > _MOST_DIGITS for digits in re.findall(rb"\d+", fields)):
        raise tarfile.HeaderError("an extended header of digits")
    at, end = 0, len(fields.rstrip(b"\0"))
    while at < end:
        length = int(fields[at : at + _LONGEST_NUMBER].partition(b" ")[0])
        if length < _SHORTEST or b"=" not in fields[at : at + length]:
            raise tarfile.HeaderError("an extended header that is damaged")
        at += length


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
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
            for info in archive:
                # Or the library would keep them all.
                archive.members = []  # type: ignore[attr-defined]
                # A size may be negative; `read` would take it for all there is.
                if info.size < 0 or archive.offset <= info.offset:
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
    """All bytes of a member of the archive that tells a label.

    Raises:
        ValueError: It is larger than `MAX_LABEL`.
    """
    if member.size > MAX_LABEL:
        raise ValueError(f"{member.name}: larger than {MAX_LABEL >> 20} MiB")
    file.seek(member.start)
    return file.read(member.size)

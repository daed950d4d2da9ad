"""Zip archives read without unpacking them: nothing is written to disk, and nothing in them is trusted.

A member that could not be unpacked safely (a path that leaves the folder, a password, a size beyond the limit) is
listed with the reason, so that a reader can name and count it.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from skelact.data.readers.base import DamagedClip
from skelact.errors import SkelactError

#: Largest member that is read, in bytes.
LIMIT = 256 << 20


@dataclass(frozen=True)
class Member:
    """One file in an archive.

    Args:
        name: its path in the archive, as stored.
        size: bytes when unpacked, as the archive's directory says.
        crc: checksum of the content.
        damage: why it may not be used; empty if nothing speaks against it.
    """

    name: str
    size: int
    crc: int
    damage: str = ""

    @property
    def stem(self) -> str:
        """Name of the file without folder and suffix."""
        return PurePosixPath(self.name.replace("\\", "/")).stem


def list_members(path: str | Path, suffix: str = "", limit: int = LIMIT) -> list[Member]:
    """Files of an archive by its directory, in the order of their names; nothing is unpacked.

    Args:
        path: a zip file.
        suffix: only names that end so, in capitals or not. Copies of file attributes that macOS adds are left out.
        limit: members that claim more bytes are listed as damaged.

    Raises:
        SkelactError: it is not a whole zip file or cannot be opened.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile hands through what its parsers meet: struct.error, UnicodeDecodeError, ...
        raise SkelactError(f"{path} is not a whole zip file: {_reason(error)}") from None
    members: list[Member] = []
    seen: set[str] = set()
    for entry in sorted(entries, key=lambda entry: entry.filename):
        name = entry.orig_filename
        parts = name.replace("\\", "/").split("/")
        if entry.is_dir() or not name.lower().endswith(suffix.lower()):
            continue
        if "__MACOSX" in parts or parts[-1].startswith("._"):
            continue
        damage = _damage(entry, parts, limit) or ("stands twice in the archive" if entry.filename in seen else "")
        seen.add(entry.filename)
        members.append(Member(entry.filename, entry.file_size, entry.CRC, damage))
    return members


def _damage(entry: zipfile.ZipInfo, parts: list[str], limit: int) -> str:
    if parts[0] == "" or ":" in parts[0]:
        return "has an absolute path"
    if ".." in parts:
        return "has a path that leaves the archive's folder"
    if "\0" in entry.orig_filename:
        return "has a name with a zero byte"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.file_size > limit:
        return f"claims {entry.file_size} bytes, more than the {limit} allowed"
    return ""


def read_member(path: str | Path, member: str, limit: int = LIMIT) -> bytes:
    """Content of one member. The archive stays open in this process for the next ones.

    Args:
        path: a zip file.
        member: the member's path in it.
        limit: most bytes to unpack, whatever the directory claims.

    Raises:
        DamagedClip: the member is missing or damaged, encrypted, larger than the limit, or the archive is gone.
    """
    try:
        status = os.stat(path)
        archive, entries = _archive(os.fspath(path), os.getpid(), status.st_mtime_ns, status.st_size)
        if member not in entries:
            raise DamagedClip(path, member, "is not in the archive")
        entry = entries[member]
        if damage := _damage(entry, entry.orig_filename.replace("\\", "/").split("/"), limit):
            raise DamagedClip(path, member, damage)
        with archive.open(entry) as stream:
            data = stream.read(limit + 1)
    except DamagedClip:
        raise
    except Exception as error:  # as above; and zlib.error, lzma.LZMAError, EOFError, RuntimeError (passwords), ...
        raise DamagedClip(path, member, f"cannot be unpacked ({_reason(error)})") from None
    if len(data) > limit:
        raise DamagedClip(path, member, f"is larger than the {limit} bytes allowed")
    if len(data) != entry.file_size:
        raise DamagedClip(path, member, f"has {len(data)} bytes, the archive promises {entry.file_size}")
    return data


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or "ends too early"
    return text if isinstance(error, (OSError, zipfile.BadZipFile)) else f"{type(error).__name__}: {text}"


@lru_cache(maxsize=8)
def _archive(path: str, process: int, modified: int, size: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """The open archive and the first entry of each name; own ones for every process, as forks share the position."""
    archive = zipfile.ZipFile(path)
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        entries.setdefault(entry.filename, entry)
    return archive, entries

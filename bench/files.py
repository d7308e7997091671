"""Files that are written whole or not at all: aside in the same folder, fsynced, renamed. Torch-free."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from bench.errors import BadInput


def write_atomic(path: Path, data: bytes | str, *, sync: bool = True) -> None:
    """Write aside in the same folder, fsync, rename, fsync the folder: whoever reads sees all of it or none.

    `sync=False` leaves out both fsyncs: a crash of the machine may then lose this version.
    """
    aside = write_aside(path, data, sync)
    try:
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def write_aside(path: Path, data: bytes | str, sync: bool) -> Path:
    """A temporary file beside `path` that holds `data`; readers ignore its name."""
    aside = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        with open(aside, "xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return aside


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:            # some network file systems have no fsync of folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: str | bytes) -> bool:
    """Write a file of results or reports, and its folder, unless it already holds this content.

    Returns whether it was written. Raises BadInput naming the folder that cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.is_file() and path.read_bytes() == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise BadInput(f"cannot write {path.name} in the folder {path.parent} ({error.strerror or error}); make the "
                       f"folder writable, or choose another with --results or --reports") from error
    return True

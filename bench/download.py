"""A file of the network, or of an archive, had whole or not at all. Torch-free."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import secrets
import shutil
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from bench.errors import BadInput

TIMEOUT = 30                # seconds without a sign of life
CHUNK = 1 << 20             # bytes


def fetch(url: str, target: Path, *, sha256: str = "", progress: Callable[[int, int], None] | None = None) -> str:
    """Fetch http(s):// or file:// into `target`, over what is there; returns the hex digest of its sha256.

    sha256: what it must begin with. progress(bytes, of bytes, 0 where that is not known) is called as it goes.
    Raises BadInput where the file cannot be had, is another one, or cannot be written.
    """
    part = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    digest, done = hashlib.sha256(), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=TIMEOUT) as source, open(part, "xb") as file:
            total = int(source.headers.get("Content-Length") or 0)
            while chunk := source.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        if total and done != total:
            raise BadInput(f"{url}: the connection ended after {done:,} of {total:,} bytes; try again")
        if not digest.hexdigest().startswith(sha256):
            raise BadInput(f"{url}: what came is not the published file (sha256 {digest.hexdigest()[:12]}, expected "
                           f"{sha256[:12]}); try again, or put {target.name} into {target.parent} yourself")
        os.replace(part, target)
    except BadInput:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:       # URLError is an OSError
        raise BadInput(f"{url} cannot be fetched into {target.parent} ({error}); fetch it elsewhere and put it there as "
                       f"{target.name}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return digest.hexdigest()


def unpack(archive: Path, member: str, target: Path, *, sha256: str = "") -> None:
    """One file of a zip archive into `target`, over what is there; no other, and no name that the archive gives it.

    sha256: what it must begin with. Raises BadInput where it is not in it, is damaged, is another one, or does not fit.
    """
    part = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(archive) as opened:
            whole = opened.getinfo(member).file_size
            if whole > (free := shutil.disk_usage(target.parent).free):
                raise BadInput(f"{archive}: {member} in it has {whole:,} bytes, but {target.parent} has room for {free:,}")
            with opened.open(member) as source, open(part, "xb") as file:
                while chunk := source.read(CHUNK):          # never more than `whole`; its checksum is compared at the end
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                file.flush()
                os.fsync(file.fileno())
        if done != whole:
            raise BadInput(f"{archive}: {member} in it ends after {done:,} of {whole:,} bytes; remove the archive and try again")
        if not digest.hexdigest().startswith(sha256):
            raise BadInput(f"{archive}: {member} in it is not the published file (sha256 {digest.hexdigest()[:12]}, expected "
                           f"{sha256[:12]}); remove the archive and try again")
        os.replace(part, target)
    except KeyError as error:
        raise BadInput(f"{archive}: there is no {member} in it; remove the archive and try again") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:       # RuntimeError: encrypted
        raise BadInput(f"{archive}: {member} cannot be read from it ({error}); remove the archive and try again") from error
    except OSError as error:
        raise BadInput(f"{archive}: {member} cannot be written to {target.parent} ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)

"""The compiled search (nearest.c): built by the C compiler that is there when it is first wanted, kept in the cache.

Nobody needs a compiler: without one, and with BENCH_KERNELS=0, the searches use torch and numpy alone, and one line
in the debug log says so. The file in the cache is named by its source, the compiler, its flags and the processor, so
that a stale one, or one of another machine that shares the folder, is never loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("nearest.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")
LIMIT = 60.0                    # seconds a build may take

_log = logging.getLogger(__name__)


def switched_off() -> bool:
    """BENCH_KERNELS=0: nothing of our own is compiled."""
    return os.environ.get("BENCH_KERNELS") == "0"


def library() -> ctypes.CDLL | None:
    """`search`, `tile`, `look_up` and `add_rows` of nearest.c; None where there is no compiler, the build fails or it is switched off."""
    return None if switched_off() else _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        loaded = ctypes.CDLL(str(_built()))
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        loaded.search.argtypes = [pointer, whole, whole, pointer, whole, ctypes.c_float, whole, pointer, pointer, pointer]
        loaded.search.restype = None
        loaded.tile.argtypes, loaded.tile.restype = [], whole
        loaded.look_up.argtypes, loaded.look_up.restype = [pointer, whole, whole, *4 * [pointer]], ctypes.c_double
        loaded.add_rows.argtypes = [pointer, whole, whole, pointer, whole, whole, pointer]
        loaded.add_rows.restype = None
        return loaded
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        _log.debug("the search runs without its compiled kernel: %s", error)
        return None


def _built() -> Path:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise RuntimeError(f"none of {', '.join(COMPILERS)} is installed")
    source = SOURCE.read_bytes()
    parts = (source, os.path.realpath(compiler).encode(), " ".join(FLAGS).encode(), _processor().encode())
    name = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:24]
    file = _folder() / f"nearest-{name}.so"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            fresh = Path(folder) / file.name
            done = subprocess.run([compiler, *FLAGS, "-o", str(fresh), str(SOURCE), "-lm"],
                                  capture_output=True, text=True, timeout=LIMIT)
            if done.returncode:
                raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[:500]}")
            os.replace(fresh, file)             # at once: another process sees all of it or nothing
    return file


def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    except OSError:
        told = {platform.processor()}
    return "\n".join(sorted({platform.machine(), platform.system(), *told}))


def _folder() -> Path:
    """Beside the other things that may be deleted at any time."""
    if named := os.environ.get("BENCH_CACHE"):
        return Path(named) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenizer-bench" / "kernels"

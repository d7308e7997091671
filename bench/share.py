"""Results that travel: a suite as one archive with checksums, and several people's results as one. Torch-free.

    <suite>/SHA256SUMS          of every other file, as `sha256sum -c` reads it
    <suite>/suite.yaml          the suite's file, where there is one
    <suite>/results/            records.jsonl, sanity.jsonl, suite.json, curves.parquet, diagnostics/<train_id>.npz
    <suite>/reports/            tables, figures, pages

No weights, no run folders. The same files make the same archive, byte for byte. An archive is read in memory, never
unpacked: what it holds may come from anywhere.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from bench.collect import CURVE_COLUMNS, packed_curves
from bench.errors import BadInput
from bench.files import replace_file
from bench.places import Places
from bench.results import FILE as RECORDS
from bench.results import Record, merge, parse_records, write_records
from bench.suite import find_suite
from bench.versions import training_digest

SUMS, SANITY, SUITE, CURVES, DIAGNOSTICS = "SHA256SUMS", "sanity.jsonl", "suite.json", "curves.parquet", "diagnostics"
KEPT = (RECORDS, SANITY, SUITE, CURVES)                     # of results/<suite>, besides the diagnostics
REPORT = {".md", ".html", ".tex", ".csv", ".svg", ".png", ".gif", ".webp"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")       # of a suite
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")         # of a train_id, which becomes a file's name
ARCHIVE = re.compile(DIAGNOSTICS + r"/[A-Za-z0-9][A-Za-z0-9_-]{0,99}(~[0-9a-f]{8})?\.npz")
MOST_FILES, MOST_BYTES, MOST_OF_ONE = 100_000, 2**29, 2**28
USUAL = 2**20                                               # bytes of curves, above which a repository grows

Rows = tuple[tuple[Any, ...], ...]


# -- packing -------------------------------------------------------------------------------------------------


def publish(name: str, places: Places, output: Path | None = None) -> tuple[Path, list[str]]:
    """Pack a suite's records and report; returns the archive (.tar.gz, or .zip where `output` says so) and its files.

    Raises BadInput where there are no records, for another kind of archive, and where a limit of `opened` is passed.
    """
    output = output or Path(f"{name}.tar.gz")
    if not str(output).endswith((".tar.gz", ".tgz", ".zip")):
        raise BadInput(f"--output {output}: an archive is a .tar.gz or a .zip")
    home, report = places.results / name, places.reports / name
    if not (home / RECORDS).is_file():
        raise BadInput(f"{home / RECORDS}: there are no records of {name} to publish; `bench run {name}` makes them")
    found = [(f"results/{file}", home / file) for file in KEPT if (home / file).is_file()]
    found += [(f"results/{DIAGNOSTICS}/{p.name}", p) for p in (home / DIAGNOSTICS).glob("*.npz")]
    found += [(f"reports/{p.relative_to(report).as_posix()}", p) for p in report.rglob("*")
              if p.is_file() and not p.is_symlink() and p.suffix in REPORT and not p.name.startswith(".")]
    if (file := _suite_file(name)) is not None:
        found.append(("suite.yaml", file))
    try:
        files = {f"{name}/{inside}": path.read_bytes() for inside, path in found}
    except OSError as error:
        raise BadInput(f"{error.filename}: cannot be read ({error.strerror})") from error
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {inside.removeprefix(f'{name}/')}\n"
                   for inside, data in sorted(files.items()))
    files[f"{name}/{SUMS}"] = sums.encode()
    large = max(files, key=lambda inside: len(files[inside]))
    if len(files) > MOST_FILES or sum(map(len, files.values())) > MOST_BYTES or len(files[large]) > MOST_OF_ONE:
        raise BadInput(f"{name}: {sum(map(len, files.values())):,} bytes in {len(files):,} files are too much for one "
                       f"archive ({MOST_BYTES:,} bytes, {MOST_OF_ONE:,} in one file); the largest is {large}")
    replace_file(output.absolute(), _zipped(files) if output.suffix == ".zip" else _tarred(files))
    return output, sorted(files)


def _suite_file(name: str) -> Path | None:
    try:
        return find_suite(name)
    except BadInput:
        return None


def _tarred(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with (gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as packed,
          tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive):
        for inside in sorted(files):
            entry = tarfile.TarInfo(inside)             # no times, no owners
            entry.size, entry.mode = len(files[inside]), 0o644
            archive.addfile(entry, io.BytesIO(files[inside]))
    return buffer.getvalue()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for inside in sorted(files):
            entry = zipfile.ZipInfo(inside, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, files[inside], compresslevel=9)
    return buffer.getvalue()


# -- reading -------------------------------------------------------------------------------------------------


def opened(path: Path) -> tuple[str, dict[str, bytes]]:
    """(suite, file -> content) of an archive: `results/records.jsonl` and so on, each with the checksum it should have.

    Raises BadInput, in one sentence, for whatever `publish` would not have written: other paths, links, more than one of
    a name, wrong or missing checksums, more than 512 MiB in all or 256 MiB in one file.
    """
    files: dict[PurePosixPath, bytes] = {}
    left = MOST_BYTES
    try:
        for inside, size, file in _members(path):
            place = PurePosixPath(inside)
            if (place.is_absolute() or ".." in place.parts or "\\" in inside or "\0" in inside or len(place.parts) < 2
                    or str(place) != inside):
                raise BadInput(f"{path}: it holds {inside[:200]!r}, which leaves its folder; `bench publish` writes no such path")
            if place in files:
                raise BadInput(f"{path}: it holds {inside} more than once")
            if size > min(left, MOST_OF_ONE) or len(files) >= MOST_FILES:
                raise _too_large(path)
            data = file.read(min(left, MOST_OF_ONE) + 1)
            if len(data) != size:
                raise _too_large(path) if len(data) > size else BadInput(f"{path}: {inside} is cut off; get the archive again")
            left -= size
            files[place] = data
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, tarfile.TarError, zipfile.BadZipFile,
            zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise BadInput(f"{path}: there is no such archive") from error
        raise BadInput(f"{path}: not an archive that can be read ({error}); get it again") from error
    suites = {place.parts[0] for place in files}
    if len(suites) != 1 or not NAME.fullmatch(suite := suites.pop()):
        raise BadInput(f"{path}: an archive of `bench publish` holds one folder named as its suite, this one does not")
    inner = {str(place.relative_to(suite)): data for place, data in files.items()}
    _check(path, inner)
    return suite, inner


def _too_large(path: Path) -> BadInput:
    return BadInput(f"{path}: it holds more than an archive may ({MOST_BYTES:,} bytes, {MOST_OF_ONE:,} in one file, "
                    f"{MOST_FILES:,} files)")


def _members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(name, declared size, file) of every entry; raises BadInput for what is no regular file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.is_dir() or (entry.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                    raise BadInput(f"{path}: it holds {entry.filename[:200]!r}, which is no file")
                with archive.open(entry) as file:
                    yield entry.filename, entry.file_size, file
        return
    with gzip.open(path) as packed, tarfile.open(fileobj=_Limited(packed, path), mode="r|") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if file is None:
                raise BadInput(f"{path}: it holds {member.name[:200]!r}, which is no file")
            yield member.name, member.size, file


class _Limited:
    """A stream that ends in an error, not in all of the memory."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path, self.left = file, path, MOST_BYTES + 1024 * MOST_FILES

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _too_large(self.path)
        return data


def _check(path: Path, files: Mapping[str, bytes]) -> None:
    lines = files.get(SUMS, b"").decode(errors="replace").splitlines()
    if not lines:
        raise BadInput(f"{path}: it has no {SUMS}; `bench publish` writes archives that have")
    sums = {inside: digest for digest, _, inside in (line.partition("  ") for line in lines)}
    for inside in sorted({*files, *sums} - {SUMS}):
        if inside not in sums or inside not in files:
            raise BadInput(f"{path}: {inside} is {'missing' if inside in sums else f'not in {SUMS}'}; get the archive again")
        if hashlib.sha256(files[inside]).hexdigest() != sums[inside]:
            raise BadInput(f"{path}: {inside} is not what {SUMS} says it was; get the archive again")


# -- merging -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """What a folder results/<suite>, or an archive, brings."""

    name: str                                   # whose it is, in words
    suite: str
    records: list[Record]
    sanity: list[Record]
    remembered: bytes | None                    # suite.json
    curves: dict[tuple[str, str], Rows]         # (train_id, digest of the training) -> rows without train_id
    arrays: dict[tuple[str, str], bytes]        # likewise: archives of diagnostics


@dataclass(frozen=True)
class Merged:
    """What came of it."""

    folder: Path
    runs: int
    differing: tuple[str, ...]                  # labels of runs of which there are several results
    written: tuple[str, ...]                    # files; none where nothing is new
    remarks: tuple[str, ...]


def merge_results(sources: Sequence[str], places: Places, name: str | None = None) -> Merged:
    """Join folders of records and archives into results/<name>, with what is there already.

    A source is a path, or WHO=PATH. Each file is replaced whole, the records after what belongs to them, so that a merge
    that was killed is completed by doing it again. Raises BadInput before anything is written.
    """
    found = [_contents(text) for text in sources]
    found = [c for i, c in enumerate(found) if c not in found[:i]]
    if len({c.name for c in found}) < len(found):
        twice = next(c.name for c in found if sum(c.name == other.name for other in found) > 1)
        raise BadInput(f"two sources are called {twice!r}; say whose they are: alice=PATH bob=PATH")
    suites = sorted({c.suite for c in found})
    if name is None and len(suites) > 1:
        raise BadInput(f"these are results of {' and '.join(suites)}; say with --name what to call them together")
    name = name or suites[0]
    if not NAME.fullmatch(name):
        raise BadInput(f"--name {name!r}: letters, digits, dots and dashes, as of a folder")
    folder = places.results / name
    here = [_of_folder("", folder)] if (folder / RECORDS).is_file() else []
    everything = [*here, *found]
    records, sanity = (merge((c.name, getattr(c, part)) for c in everything) for part in ("records", "sanity"))
    curves = _best((c.curves for c in everything), lambda rows: (len(rows), repr(rows)))
    arrays = _best((c.arrays for c in everything), lambda data: (len(data), data))
    written, remarks = [], []
    for inside, data in _placed(arrays, records):
        written += _put(folder, f"{DIAGNOSTICS}/{inside}.npz", data)
    if rows := [(inside, *row) for inside, some in _placed(curves, records) for row in some]:
        written += _put(folder, CURVES, packed_curves(rows))
        if (size := (folder / CURVES).stat().st_size) > USUAL:
            remarks.append(f"{folder / CURVES} has {size:,} bytes, which is much for a repository")
    for file, some in ((SANITY, sanity), (RECORDS, records)):
        before = (folder / file).read_bytes() if (folder / file).is_file() else None
        if some:
            write_records(folder / file, some)
            written += [file] if (folder / file).read_bytes() != before else []
    if not (folder / SUITE).is_file():
        texts = sorted({_renamed(c.remembered, name) for c in found if c.remembered})
        written += _put(folder, SUITE, texts[0]) if texts else []
        if len(texts) > 1:
            remarks.append("the suites ask different questions, or report differently; the report is that of one of them")
    differing = tuple(r.label for r in records if _differ(r))
    return Merged(folder, len(records), differing, tuple(written), tuple(remarks))


def _put(folder: Path, inside: str, data: bytes) -> list[str]:
    return [inside] if replace_file(folder / inside, data) else []


def _differ(record: Record) -> bool:
    """Whether its versions have different numbers for one value."""
    numbers: dict[str, set[float]] = {}
    for version in record.versions:
        for value_id, value in version.values.items():
            numbers.setdefault(value_id, set()).update(() if value.number is None else (value.number,))
    return any(len(found) > 1 for found in numbers.values())


def _renamed(content: bytes, name: str) -> bytes:
    return (json.dumps({**json.loads(content), "name": name}, indent=1, sort_keys=True) + "\n").encode()


def _contents(text: str) -> Contents:
    who, equals, rest = text.partition("=")
    given = Path(rest if equals and not Path(text).exists() else text).expanduser()
    name = who if given != Path(text).expanduser() and equals else ""
    if given.is_dir():
        return _of_folder(name or "/".join(given.resolve().parts[-3:]), given)
    if not given.is_file() or not given.name.endswith((".tar.gz", ".tgz", ".zip")):
        raise BadInput(f"{text}: neither a folder results/<suite> nor an archive made by `bench publish` (.tar.gz, .zip)")
    suite, files = opened(given)
    inner = {k.removeprefix("results/"): v for k, v in files.items() if k.startswith("results/")}
    return _read(name or given.name, str(given), suite, inner)


def _of_folder(name: str, folder: Path) -> Contents:
    """Raises BadInput where it holds no records, or they cannot be read."""
    if not (folder / RECORDS).is_file():
        raise BadInput(f"{folder}: there is no {RECORDS} in this folder; a source is a folder results/<suite>, or an archive")
    paths = [p for p in (*(folder / f for f in KEPT), *(folder / DIAGNOSTICS).glob("*.npz")) if p.is_file()]
    try:
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}
    except OSError as error:
        raise BadInput(f"{error.filename}: cannot be read ({error.strerror})") from error
    return _read(name, str(folder), folder.resolve().name, files)


def _read(name: str, where: str, suite: str, files: Mapping[str, bytes]) -> Contents:
    if RECORDS not in files:
        raise BadInput(f"{where}: it holds no {RECORDS}")
    records, sanity = (parse_records(files.get(f, b""), f"{where}: {f}") for f in (RECORDS, SANITY))
    for record in (*records, *sanity):
        if not RUN.fullmatch(record.train_id) or any(r.train_id != record.train_id or r.others for r in record.others):
            raise BadInput(f"{where}: {record.train_id[:100]!r} is no identity of a run")
    remembered = files.get(SUITE)
    try:
        content = json.loads(remembered or b"{}")
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
    except ValueError as error:
        raise BadInput(f"{where}: {SUITE}: cannot be read ({error})") from error
    arrays = {k.removeprefix(f"{DIAGNOSTICS}/").removesuffix(".npz"): v for k, v in files.items() if ARCHIVE.fullmatch(k)}
    curves = _rows(files[CURVES], f"{where}: {CURVES}") if CURVES in files else {}
    return Contents(name, suite, records, sanity, remembered, _owned(curves, records), _owned(arrays, records))


# -- what belongs to a training: curves and arrays -----------------------------------------------------------


def _owned(found: Mapping[str, Any], records: Sequence[Record]) -> dict[tuple[str, str], Any]:
    """`found`: by train_id, or, of a merged folder, also by train_id~digest -> by (train_id, digest)."""
    first = {r.train_id: training_digest(r) for r in records}
    owned = {}
    for key, what in found.items():
        train_id, merged, digest = key.partition("~")
        if train_id in first and (merged or not any(
                other.startswith(f"{train_id}~") and repr(same) == repr(what) for other, same in found.items())):
            owned[train_id, digest or first[train_id]] = what
    return owned


def _best(several: Iterable[Mapping[tuple[str, str], Any]], rank: Any) -> dict[tuple[str, str], Any]:
    """Of equal trainings the longest."""
    found: dict[tuple[str, str], Any] = {}
    for one in several:
        for key, what in one.items():
            if key not in found or rank(found[key]) < rank(what):
                found[key] = what
    return found


def _placed(owned: Mapping[tuple[str, str], Any], records: Sequence[Record]) -> list[tuple[str, Any]]:
    """Under train_id those of the first version, which figures show; of a run with several trainings all by digest, too."""
    first = {r.train_id: training_digest(r) for r in records}
    several = {r.train_id for r in records if len({training_digest(v) for v in r.versions}) > 1}
    several |= {train_id for train_id, digest in owned if digest != first[train_id]}
    placed = [(train_id, what) for (train_id, digest), what in owned.items() if digest == first[train_id]]
    placed += [(f"{train_id}~{digest}", what) for (train_id, digest), what in owned.items() if train_id in several]
    return sorted(placed, key=lambda pair: pair[0])


def _rows(content: bytes, where: str) -> dict[str, Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content)).to_pydict()
        rows = zip(*(table[c] for c in CURVE_COLUMNS), strict=True)
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise BadInput(f"{where}: cannot be read ({str(error).splitlines()[0]})") from error
    found: dict[str, list[tuple[Any, ...]]] = {}
    for train_id, *row in rows:
        found.setdefault(str(train_id), []).append(tuple(row))
    return {train_id: tuple(some) for train_id, some in found.items()}

"""Numbers that others published: results/published.csv, and which of them a measured number may be held against.

One number a row. Torch-free.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

from bench.errors import BadInput
from bench.places import Places
from bench.protocol import SEPARATOR, Wish, protocols, wanted
from bench.registry import did_you_mean, signature
from bench.report.spec import PublishedSpec
from bench.results import Record, Value

FILE = "published.csv"
REPOSITORY = Path(__file__).resolve().parent.parent / "results"
COLUMNS = ("id", "system", "variant", "dataset", "image_size", "split", "n_images", "tokens", "codebook_size",
           "codebook_dim", "bits_per_image", "metric", "value", "unit", "protocol", "source", "table", "evidence",
           "note", "doubt", "settings")
NEEDED = ("id", "system", "dataset", "metric", "value", "protocol", "source", "evidence")
COUNTS = ("n_images", "tokens", "codebook_size", "codebook_dim")

Evidence = Literal["read", "image", "recalled"]
#: how a number is marked wherever it is shown
MARKS: dict[str, str] = {"read": "", "image": " (read off a figure)", "recalled": " (recalled)"}
UNITS = {"psnr": "dB", "usage": "share", "usage_window": "share"}          # of all other metrics: none
#: (smallest, largest) that a metric can be; what is not listed is at least 0
RANGES = {"psnr": (5.0, 60.0), **dict.fromkeys(
    ("usage", "usage_window", "ssim", "lpips", "precision", "recall"), (0.0, 1.0)), **dict.fromkeys(
    ("perplexity", "perplexity_window", "is"), (1.0, math.inf))}
#: measured on reconstructions of images, so that a number on the training split is another number
GENERATION = ("gfid", "is", "precision", "recall")
#: other people's ways of measuring that are named in the file and that no protocol of ours describes
FOREIGN = frozenset((
    "adm", "bsq-vit", "cvq", "fsq-pytorch", "givt", "khanhvu207", "ldm", "maskbit", "maskgit", "mgvq", "movqgan-sber",
    "revq", "rq-vae", "simvq", "titok", "unknown", "vqgan-lc", "wasserstein-vq", "xqgan"))
#: a run whose quantizer is another one is another system, whatever its row is called
IDENTIFYING = "tokenizer.quantizer."
SEED = "train.seed"


@dataclass(frozen=True, slots=True)
class Published:
    """One published number, in the unit that we measure in, and all that is known of how it came about."""

    id: str
    system: str                                 # vqvae-simplecnn, llamagen-vq16, ...
    variant: str                                # of the system: "K=512 D=64"; may be empty
    dataset: str                                # as our data sets are called
    image_size: str                             # pixels of a side; or "2560x1440", "original", or empty
    split: str                                  # "test", "val", "train", "generated", or empty
    n_images: int | None
    tokens: int | None                          # per image, over all levels
    codebook_size: int | None                   # of one level
    codebook_dim: int | None
    bits_per_image: float | None
    metric: str                                 # as our columns are called, without a protocol
    text: str                                   # the number with the digits that were printed; a share as a fraction
    value: float
    unit: str                                   # "dB", "share" (printed as per cent), or empty
    protocol: str                               # how it was measured: one of ours, or one of FOREIGN
    source: str                                 # owner/repository file@commit, or arXiv:number
    table: str
    evidence: Evidence                          # read in a text, read off an image, or recalled from memory
    note: str                                   # how it was measured
    doubt: str                                  # why the number itself is not to be relied on
    settings: tuple[tuple[str, str], ...]       # dotted key of a run -> its value in JSON, as the published run had it

    @property
    def decimals(self) -> int:
        """Of `text`. A share is printed as per cent, so never fewer than two."""
        return max(len(self.text.partition(".")[2]), 2 if self.unit == "share" else 0)

    def shown(self) -> str:
        """The number as it was printed, with its mark: `56.05%`, `0.94 (read off a figure)`, `7.94 (recalled)`."""
        if self.unit == "share":
            printed = f"{100 * Decimal(self.text):.{self.decimals - 2}f}%"
        else:
            printed = self.text
        return printed + MARKS[self.evidence]

    def named(self) -> str:
        """What it is a number of: `vqvae-simplecnn K=512 D=64, celeba 64`."""
        return f"{self.system} {self.variant}".rstrip() + f", {self.dataset} {self.image_size}".rstrip()


# -- reading -------------------------------------------------------------------------------------------------


def published_file(results: Path | None = None) -> Path | None:
    """published.csv of a folder of results (default: of this invocation), else the repository's own; None: neither."""
    folder = Places.find().results if results is None else results
    return next((f / FILE for f in (folder, REPOSITORY) if (f / FILE).is_file()), None)


def read_published(path: Path | None = None) -> tuple[Published, ...]:
    """All published numbers, in the file's order; read once. () where no file is named and none is there.

    Raises BadInput naming file:line:column of what is not as it has to be, and saying what is expected there.
    """
    found = published_file() if path is None else path
    if found is None:
        return ()
    try:
        status = found.stat()
    except OSError as error:
        raise BadInput(f"{found}: cannot be read ({error.strerror})") from error
    return _read(found.absolute(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _read(path: Path, _modified: int, _size: int) -> tuple[Published, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}:{line}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error
    entries: list[Published] = []
    lines: dict[str, int] = {}
    for line, row in _rows(path, text):
        entry = _entry(row, f"{path}:{line}")
        if entry.id in lines:
            raise BadInput(f"{path}:{line}:id = {entry.id!r}: line {lines[entry.id]} has the same id; "
                           f"give each number its own")
        lines[entry.id] = line
        entries.append(entry)
    return tuple(entries)


def _rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line it begins at, cells by column) of each row."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line, header = 1, None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise BadInput(f"{path}:{line}: not a row of a CSV file ({error}); "
                           f"put cells with commas in double quotes") from error
        begun, line = line, reader.line_num + 1
        if header is None:
            header = cells
            if tuple(header) != COLUMNS:
                raise BadInput(f"{path}:1: the columns have to be {','.join(COLUMNS)}; got {','.join(header)[:300]}")
        elif cells:
            if len(cells) != len(COLUMNS):
                raise BadInput(f"{path}:{begun}: {len(cells)} cells where {len(COLUMNS)} are expected; "
                               f"put cells with commas in double quotes")
            yield begun, dict(zip(COLUMNS, cells, strict=True))
    if header is None:
        raise BadInput(f"{path}:1: the file is empty; its first line has to be {','.join(COLUMNS)}")


def _entry(row: dict[str, str], where: str) -> Published:
    def wrong(column: str, sentence: str) -> BadInput:
        return BadInput(f"{where}:{column} = {row[column][:80]!r}: {sentence}")

    for column, cell in row.items():
        if cell != cell.strip() or not cell.isprintable():
            raise wrong(column, "no blanks at its ends, and no line breaks or control characters, please")
    for column in NEEDED:
        if not row[column]:
            raise wrong(column, "must not be empty")
    if not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", row["value"], re.ASCII):
        raise wrong("value", "expected a plain number such as 0.5605, with the digits that were printed")
    if row["bits_per_image"] and not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", row["bits_per_image"], re.ASCII):
        raise wrong("bits_per_image", "expected a plain number, or nothing where it is not known")
    for column in COUNTS:
        if row[column] and not re.fullmatch(r"[1-9]\d{0,17}", row[column], re.ASCII):
            raise wrong(column, "expected a whole number above 0, or nothing where it is not known")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", row["metric"]):
        raise wrong("metric", "expected a column's name such as usage_window, without a protocol")
    if row["evidence"] not in get_args(Evidence):
        raise wrong("evidence", f"expected one of {', '.join(get_args(Evidence))}")
    if row["unit"] != (unit := UNITS.get(row["metric"], "")):
        raise wrong("unit", f"{row['metric']} is given in {unit!r}")
    settings: dict[str, str] = {}
    for pair in filter(None, row["settings"].split("; ")):
        key, equals, value = pair.partition("=")
        if not equals or not value or key in settings or not re.fullmatch(r"[\w-]+(\.[\w-]+)+", key):
            raise wrong("settings", f"{pair!r}: expected key=value, each dotted key once, with '; ' between them")
        settings[key] = value
    cells: dict[str, Any] = {c: row[c] for c in COLUMNS if c not in (*COUNTS, "value", "bits_per_image", "settings")}
    cells |= {c: int(row[c]) if row[c] else None for c in COUNTS}
    entry = Published(
        **cells, bits_per_image=float(row["bits_per_image"]) if row["bits_per_image"] else None,
        text=row["value"], value=float(row["value"]), settings=tuple(settings.items()))
    if problem := _out_of_range(entry):
        raise wrong("value", problem)
    return entry


def _out_of_range(entry: Published) -> str:
    low, high = RANGES.get(entry.metric, (0.0, math.inf))
    if not low <= entry.value <= high:
        return f"{entry.metric} is between {low:g} and {high:g}; a share is given as a fraction"
    if entry.metric.startswith("perplexity") and entry.codebook_size is not None and entry.value > entry.codebook_size:
        return f"a perplexity is at most the codebook size, {entry.codebook_size}"
    return ""


def check(entries: Sequence[Published]) -> list[str]:
    """What the numbers contradict, as sentences; [] where all is well. Run over the committed file by a test."""
    found: list[str] = []
    known = FOREIGN | set(protocols())
    said: dict[tuple[str, ...], Published] = {}
    for entry, before in zip(entries, (None, *entries)):
        if before is not None and entry.id <= before.id:
            found.append(f"{entry.id}: rows are sorted by id, each once; it stands after {before.id}")
        if problem := _out_of_range(entry):
            found.append(f"{entry.id}: {entry.text}: {problem}")
        if entry.protocol not in known:
            found.append(f"{entry.id}: protocol {entry.protocol!r} is neither ours nor a foreign one"
                         f"{did_you_mean(entry.protocol, known)}")
        if entry.tokens and entry.codebook_size:
            bits = entry.tokens * math.log2(entry.codebook_size)
            if entry.bits_per_image is None or abs(entry.bits_per_image - bits) > 0.051:
                found.append(f"{entry.id}: {entry.tokens} tokens of {entry.codebook_size} codes are {bits:.1f} bits, "
                             f"not {entry.bits_per_image}")
        # what is quoted from elsewhere differs from source to source; under one protocol a system has one number
        key = (entry.system, entry.variant, entry.dataset, entry.image_size, entry.split, entry.metric, entry.protocol)
        other = said.setdefault(key, entry)
        if entry.protocol != "unknown" and other.value != entry.value:
            found.append(f"{entry.id}: {entry.text} contradicts {other.text} of {other.id}")
    return found


# -- which published number a measured one may be held against ----------------------------------------------


@dataclass(frozen=True, slots=True)
class Match:
    """A published number that was measured as one of ours was, of the system that a run is."""

    entry: Published
    value: Value                                # ours
    obstacles: tuple[str, ...] = ()             # why the two need not agree: other images, a shorter training, ...
    remarks: tuple[str, ...] = ()               # what a reader should know all the same: another seed, an image

    @property
    def why(self) -> tuple[str, ...]:
        """Why they are only partly comparable, as sentences without a full stop."""
        return (*self.obstacles, *self.remarks)

    @property
    def comparable(self) -> bool:
        return not self.obstacles

    @property
    def exact(self) -> bool:
        """Nothing is known that sets the two apart."""
        return not self.why


def match(record: Record, column: str, specs: Sequence[PublishedSpec], entries: Iterable[Published]) -> Match | None:
    """The published number to hold against a column of a run; None where there is none.

    `column` is `ssim` (whatever the run's own protocol calls so) or `ssim@xyfjason-2024`. The published number is of
    the system and variant that one of `specs` says the run is (the first that has one), of the same data set, image
    size and metric, and was measured as ours was: metric, keywords and preparation are compared, not the protocols' names.
    Of several, one without obstacles comes first, then the better evidence, then the file's order.
    """
    base, _, protocol = column.partition(SEPARATOR)
    found = [m for m in candidates(record, base, specs, entries)
             if isinstance(m, Match) and (m.entry.protocol == protocol if protocol else m.value.name == column)]
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Unlike:
    """A published number of the same system, data and metric that was measured otherwise than ours."""

    entry: Published
    value: Value
    differ: tuple[str, ...]                     # "prepare.round none instead of 8bit"; empty where nobody can say

    @property
    def why(self) -> str:
        """As a sentence without a full stop."""
        if self.differ:
            return f"published under {self.entry.protocol}: {', '.join(self.differ)}"
        if self.entry.protocol == "unknown":
            return "published under a protocol that its source does not state"
        if self.entry.protocol in protocols():
            return f"published under {self.entry.protocol}, which has no value {self.entry.metric}"
        return f"published under {self.entry.protocol}, which no protocol of ours describes"


def candidates(record: Record, metric: str, specs: Sequence[PublishedSpec],
               entries: Iterable[Published]) -> list[Match | Unlike]:
    """Every published number of a run's metric beside each of its values of that name, the best to show first."""
    if not record.trained:
        return []
    values = [v for _, v in sorted(record.values.items())
              if v.name.partition(SEPARATOR)[0] == metric and v.number is not None]
    found: list[tuple[tuple[int, ...], Match | Unlike]] = []
    entries = [e for e in entries if e.metric == metric] if values else []
    for place, spec in enumerate(specs):
        for entry in of_run(record, spec, entries):
            for value in values:
                differ = differences(value, entry)
                pair = _match(record, value, entry) if differ == () else Unlike(entry, value, differ or ())
                apart = len(pair.obstacles) if isinstance(pair, Match) else len(pair.differ) or len(COLUMNS)
                rank = (isinstance(pair, Unlike), place, apart, get_args(Evidence).index(entry.evidence))
                found.append((rank, pair))
    return [pair for _, pair in sorted(found, key=lambda item: item[0])]


def of_run(record: Record, spec: PublishedSpec, entries: Iterable[Published]) -> list[Published]:
    """The numbers of the system that a spec says a run is; [] where the spec names a setting that the run lacks."""
    system, variant = filled(spec.system, record.fields), filled(spec.variant, record.fields)
    if system is None or variant is None:
        return []
    dataset = spec.dataset or record.fields.get("dataset.name")
    size = str(record.fields.get("dataset.image_size"))
    return [e for e in entries
            if e.system == system and e.variant == variant and e.dataset == dataset and e.image_size == size
            and (spec.protocol is None or e.protocol == spec.protocol)
            and (e.split != "train" or e.metric in GENERATION)
            and not any(key.startswith(IDENTIFYING) for key, _, _ in _other_settings(record, e))]


def filled(template: str, known: Mapping[str, Any]) -> str | None:
    """A template with `{dotted.key}` replaced by a run's settings; None where the run lacks one of them."""
    missing: list[str] = []

    def setting(found: re.Match[str]) -> str:
        key = found[1]
        value = known.get(key, known.get(f"{key}.name", missing))
        if value is missing:
            missing.append(key)
            return ""
        if isinstance(value, float) and float(f"{value:g}") == value:
            return f"{value:g}"
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))

    text = re.sub(r"\{([^{}]*)\}", setting, template)
    return None if missing else text


def differences(value: Value, entry: Published) -> tuple[str, ...] | None:
    """In what a value was measured otherwise than a published one; None where no protocol of ours says."""
    wish = _wish(entry.metric, entry.protocol)
    if wish is None:
        return None
    ours = {"metric": value.metric, **value.keywords, **_prepared(value.settings.get("prepare"))}
    theirs = {"metric": wish.metric.name, **wish.metric.kwargs, **_prepared(wish.prepare)}
    neutral = signature("metric", wish.metric.name).neutral
    if value.metric == wish.metric.name:                # a keyword that is younger than the record
        ours = {k: v for k, v in neutral.items() if k in theirs} | ours
    if "revision" in value.settings:
        ours["revision"], theirs["revision"] = value.settings["revision"], wish.metric.revision
    return tuple(f"{k} {_plain(theirs[k]) if k in theirs else 'unset'} instead of "
                 f"{_plain(ours[k]) if k in ours else 'unset'}"
                 for k in sorted({*ours, *theirs})
                 if (k in ours) != (k in theirs) or _plain(ours[k]) != _plain(theirs[k]))


@functools.lru_cache(maxsize=512)
def _wish(metric: str, protocol: str) -> Wish | None:
    try:
        return wanted(metric, protocol)
    except BadInput:
        return None


def _prepared(how: Any) -> dict[str, Any]:
    return {f"prepare.{k}": v for k, v in how.items()} if isinstance(how, Mapping) else {}


def _plain(value: Any) -> str:
    """A text that is the same for 1 and 1.0, and for lists and tuples."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, default=list)


def _match(record: Record, value: Value, entry: Published) -> Match:
    obstacles = list(_images(record, value, entry))
    remarks: list[str] = []
    for key, ours, theirs in _other_settings(record, entry):
        sentence = f"{key} {ours} instead of {theirs}"
        if key == "train.steps" and ours.isdecimal() and theirs.isdecimal():
            sentence = f"{int(ours):,} training steps instead of {int(theirs):,}"
        (remarks if key == SEED else obstacles).append(sentence)
    if entry.doubt:
        obstacles.append(f"the published number is doubtful: {entry.doubt}")
    match entry.evidence:
        case "recalled":
            obstacles.append("the published number is recalled from memory; "
                             "look it up in its source before relying on it")
        case "image":
            remarks.append("the published number was read off an image")
    if entry.n_images is None:
        remarks.append("on how many images the published number was measured is not stated")
    return Match(entry, value, tuple(obstacles), tuple(remarks))


def _images(record: Record, value: Value, entry: Published) -> Iterator[str]:
    """What sets the images apart that were measured, and those that were trained on."""
    test, train = record.data.get("test"), record.data.get("train")
    if entry.n_images is not None and value.images != entry.n_images:
        yield f"measured on {value.images:,} images instead of {entry.n_images:,}"
    elif test is not None and test.of is not None and value.images != test.of:
        yield f"measured on {value.images:,} of {test.of:,} images"
    if train is not None and train.of is not None and train.images != train.of:
        yield f"trained on {train.images:,} of {train.of:,} images"
    if value.settings.get("weights", "live") != "live" and "train.average" not in dict(entry.settings):
        yield f"measured with {value.settings['weights']} weights"


def _other_settings(record: Record, entry: Published) -> list[tuple[str, str, str]]:
    """(key, ours, theirs) of the settings in which a run differs from the published one; what it lacks is not known."""
    differ = []
    for key, text in entry.settings:
        if key not in record.fields:
            continue
        ours, theirs = _plain(record.fields[key]), _plain(_parsed(text))
        if ours != theirs:
            differ.append((key, ours, theirs))
    return differ


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


assert {*COLUMNS, "text"} == {f.name for f in fields(Published)}

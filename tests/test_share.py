"""Results of several people: nothing is lost, whoever comes first; archives are the same bytes, and hostile ones are refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_records import record

from bench import share
from bench.collect import CURVE_COLUMNS, packed_curves
from bench.errors import BadInput
from bench.places import Places
from bench.report.formats import to_csv, to_html, to_latex, to_markdown
from bench.report.spec import TableSpec
from bench.report.tables import build_table
from bench.results import Record, merge, read_records, union, write_records
from bench.share import merge_results, opened, publish
from bench.versions import told, training_digest

ROOT = Path(__file__).resolve().parents[1]
SIZE = "tokenizer.quantizer.codebook_size"


def run(train_id: str = "a", *, device: str = "CPU", finished: str = "2026-01-01T10:00:00+00:00", seconds: float = 10.0,
        values: dict | None = None, **more) -> Record:
    return record(train_id, values if values is not None else {"psnr": 30.0},
                  provenance={"commit": "0123456789abcdef", "device": device, "finished": finished},
                  cost={"train_seconds": seconds, "evaluate_seconds": 1.0}, **more)


@st.composite
def collections(draw: st.DrawFn) -> list[Record]:
    """A person's records, one of each identity: trained on few machines, so that people agree, differ, and measured again."""
    ids = draw(st.lists(st.sampled_from("abc"), unique=True, max_size=3))
    return [run(i, device=draw(st.sampled_from(["CPU", "GPU"])), finished=f"2026-01-0{draw(st.integers(1, 3))}",
                state=draw(st.sampled_from(["done", "trained", "failed"])), label=draw(st.sampled_from(["x", "y"])),
                values={n: draw(st.none() | st.sampled_from([1.0, 2.0])) for n in draw(st.sets(st.sampled_from(["psnr", "ssim"])))})
            for i in ids]


def numbers(records: list[Record]) -> set[tuple]:
    return {(r.train_id, v.provenance["device"], i, value.number) for r in records for v in r.versions
            for i, value in v.values.items() if value.number is not None}


@given(st.lists(collections(), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_merging_is_idempotent_independent_of_order_and_loses_no_number_and_no_training(people: list[list[Record]]) -> None:
    named = [(name, records) for name, records in zip("ABC", people)]
    once = merge(named)
    for order in itertools.permutations(named):
        assert merge(order) == once
    assert merge([("", once)]) == once == merge([*named, ("", once)])
    assert numbers(once) == set().union(*map(numbers, people))
    assert {(r.train_id, v.state in ("done", "trained"), v.provenance["device"]) for r in once for v in r.versions} == {
        (r.train_id, r.state in ("done", "trained"), r.provenance["device"]) for records in people for r in records}


@given(*[collections()] * 3)
@settings(max_examples=25, deadline=None)
def test_merging_one_after_the_other_is_merging_at_once(a: list[Record], b: list[Record], c: list[Record]) -> None:
    def both(one: list[Record], other: list[Record]) -> list[Record]:
        return merge([("", one), ("", other)])

    assert both(both(a, b), c) == both(a, both(b, c)) == merge([("", a), ("", b), ("", c)]) == both(both(c, a), b)


@given(collections())
@settings(max_examples=15, deadline=None)
def test_records_without_conflict_are_the_bytes_that_they_were(tmp_path_factory, some: list[Record]) -> None:
    folder = tmp_path_factory.mktemp("records")
    write_records(folder / "one.jsonl", some)
    write_records(folder / "two.jsonl", merge([("alice", read_records(folder / "one.jsonl")), ("bob", some)]))
    assert (folder / "one.jsonl").read_bytes() == (folder / "two.jsonl").read_bytes()
    assert b'"others"' not in (folder / "one.jsonl").read_bytes()


def test_committed_records_are_written_as_they_stand(tmp_path: Path) -> None:
    for path in (ROOT / "results").glob("*/records.jsonl"):
        write_records(tmp_path / "again.jsonl", merge([("somebody", read_records(path))]))
        assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes(), path


def test_of_a_training_that_was_measured_again_the_later_record_stays_alone() -> None:
    early = run(values={"psnr": 30.0}, state="trained")
    late = run(finished="2026-02-02", values={"psnr": 30.0, "ssim": 0.9})
    assert merge([("A", [early]), ("B", [late])]) == [late]


def test_two_values_of_one_training_are_both_kept_with_whose_they_are() -> None:
    (both,) = merge([("alice", [run(values={"psnr": 30.0})]), ("bob", [run(values={"psnr": 31.0})])])
    assert [(told(v).split(":")[0], v.values["a-psnr"].number) for v in both.versions] == [("alice", 30.0), ("bob", 31.0)]


def test_a_run_folder_of_this_machine_replaces_nobody_elses_result() -> None:
    mine, hers = run(values={"psnr": 30.0}), run(device="GPU", values={"psnr": 31.0})
    both = merge([("me", [mine]), ("her", [hers])])
    newer = run(finished="2026-03-03", values={"psnr": 30.0, "ssim": 0.9})
    (kept,) = union(both, [newer])
    assert {v.provenance["device"] for v in kept.versions} == {"CPU", "GPU"}
    assert numbers([kept]) == {("a", "CPU", "a-psnr", 30.0), ("a", "CPU", "a-ssim", 0.9), ("a", "GPU", "a-psnr", 31.0)}


def test_every_format_of_a_table_shows_both_results_and_whose_they_are() -> None:
    records = merge([("alice", [run(values={"psnr": 30.0})]), ("bob", [run(device="GPU", seconds=5.0, values={"psnr": 31.5, "ssim": 0.9})])])
    made = build_table(records, TableSpec(name="t", rows=(SIZE,), columns=("psnr", "ssim")))
    (sentence,) = [s for _, s in made.footnotes]
    assert sentence == ("results of several people for the same settings differ: 31.5 (bob: commit 0123456789ab, GPU, 2026-01-01), "
                        "30.0 (alice: commit 0123456789ab, CPU, 2026-01-01); the first is shown")
    for render in (to_markdown, to_html, to_csv, to_latex):
        assert "bob: commit" in render(made) and "alice: commit" in render(made)


def test_a_number_that_only_another_person_has_is_shown_with_whose_it_is() -> None:
    records = merge([("alice", [run(values={"psnr": 30.0, "ssim": 0.9})]),
                     ("bob", [run(device="GPU", values={"psnr": 30.0, "rfid": 12.0})])])
    made = build_table(records, TableSpec(name="t", rows=(SIZE,), columns=("psnr", "ssim", "rfid")))
    assert [c.number for c in made.rows[0].cells] == [30.0, 0.9, 12.0] and [len(c.notes) for c in made.rows[0].cells] == [0, 0, 1]
    assert "not of the run whose numbers stand beside it" in made.footnotes[0][1] and "bob" in made.footnotes[0][1]


def test_costs_of_two_people_are_shown_with_whose_they_are() -> None:
    records = merge([("alice", [run(values={"psnr": 30.0, "ssim": 0.9})]), ("bob", [run(device="GPU", seconds=5.0)])])
    made = build_table(records, TableSpec(name="t", rows=(SIZE,), columns=("psnr", "cost.train_seconds", "parameters.total")))
    assert [len(c.notes) for c in made.rows[0].cells] == [0, 1, 0]
    assert "differ: 10 (alice: commit" in made.footnotes[0][1] and ", 5 (bob: commit" in made.footnotes[0][1]


# -- folders -------------------------------------------------------------------------------------------------


def suite(root: Path, records: list[Record], name: str = "sizes", **curves: float) -> Path:
    """results/<name> of a person: records, curves of one point a run, an array a run."""
    home = root / "results" / name
    write_records(home / "records.jsonl", records)
    if records:
        level = curves.get("level", 1.0)
        (home / "curves.parquet").write_bytes(packed_curves([(r.train_id, r.label, 10, "pixel", level) for r in records]))
        (home / "diagnostics").mkdir()
        for r in records:
            (home / "diagnostics" / f"{r.train_id}.npz").write_bytes(f"arrays {level}".encode())
    (home / "suite.json").write_text(json.dumps({"name": name, "question": "?", "report": {}}, indent=1, sort_keys=True) + "\n")
    return home


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and not p.name.endswith(".tmp")}


@pytest.fixture
def people(tmp_path: Path) -> tuple[str, str]:
    """Who trained a alone, b differently, and c only one of them."""
    alice = suite(tmp_path / "alice", [run("a"), run("b")], level=1.0)
    bob = suite(tmp_path / "bob", [run("a"), run("b", device="GPU", values={"psnr": 31.0}), run("c")], level=2.0)
    return f"alice={alice}", f"bob={bob}"


def places(root: Path) -> Places:
    return Places.find(results=root / "results", reports=root / "reports")


def test_folders_are_merged_whole_in_any_order_and_again(tmp_path: Path, people: tuple[str, str]) -> None:
    merged = merge_results(people, places(tmp_path / "one"))
    assert merged.runs == 3 and merged.differing == (run("b").label,)
    merge_results(people[::-1], places(tmp_path / "two"))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert merge_results(people, places(tmp_path / "one")).written == ()
    merge_results([f"both={merged.folder}"], places(tmp_path / "three"))
    assert tree(tmp_path / "three") == tree(tmp_path / "one")


def test_curves_and_arrays_go_with_the_training_they_belong_to(tmp_path: Path, people: tuple[str, str]) -> None:
    import pyarrow.parquet as pq

    folder = merge_results(people, places(tmp_path)).folder
    b = next(r for r in read_records(folder / "records.jsonl") if r.train_id == "b")
    levels = {"CPU": 1.0, "GPU": 2.0}
    table = pq.read_table(folder / "curves.parquet").to_pydict()
    found = dict(zip(table["train_id"], table["value"]))
    assert found["b"] == levels[b.provenance["device"]] and found["c"] == 2.0
    for version in b.versions:
        level = levels[version.provenance["device"]]
        assert found[f"b~{training_digest(version)}"] == level
        assert (folder / "diagnostics" / f"b~{training_digest(version)}.npz").read_bytes() == f"arrays {level}".encode()
    assert list(table) == list(CURVE_COLUMNS)


def test_what_is_here_already_stays(tmp_path: Path, people: tuple[str, str]) -> None:
    home = suite(tmp_path, [run("z", values={"psnr": 20.0})])
    merge_results(people[:1], places(tmp_path))
    merge_results(people[1:], places(tmp_path))
    records = read_records(home / "records.jsonl")
    assert [r.train_id for r in records] == ["a", "b", "c", "z"] and len(records[1].versions) == 2


@pytest.mark.parametrize("after", range(5))
def test_a_merge_that_is_killed_loses_nothing_and_is_completed_by_the_next(
    tmp_path: Path, people: tuple[str, str], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    merge_results(people, places(tmp_path / "whole"))
    merge_results(people[:1], places(tmp_path / "cut"))
    replace, done = os.replace, itertools.count()

    def dies(source: Path, target: Path) -> None:
        if next(done) >= after:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("bench.files.os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        merge_results(people, places(tmp_path / "cut"))
    monkeypatch.undo()
    assert {r.train_id for r in read_records(tmp_path / "cut/results/sizes/records.jsonl")} >= {"a", "b"}
    merge_results(people, places(tmp_path / "cut"))
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@pytest.mark.parametrize(("sources", "says"), [
    (["nowhere"], "neither a folder results/<suite> nor an archive"),
    (["empty"], r"there is no records\.jsonl in this folder"),
    (["broken"], "not a record"),
    (["hostile"], "is no identity of a run"),
    (["curves"], r"curves\.parquet: cannot be read"),
    (["alice", "other"], "say with --name"),
    (["x=alice", "x=bob"], "two sources are called 'x'"),
])
def test_bad_sources_are_refused_in_one_sentence_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, records in (("alice", [run()]), ("bob", [run("b")]), ("other", [run()]), ("broken", [run()]), ("curves", [run()]),
                          ("hostile", [run("../../../etc/x")])):
        home = tmp_path / name
        if name == "hostile":
            write_records(home / "records.jsonl", records)
        else:
            shutil.move(suite(tmp_path / "made" / name, records, "other" if name == "other" else "sizes"), home)
    (tmp_path / "broken" / "records.jsonl").write_text("{}\n")
    (tmp_path / "curves" / "curves.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(BadInput, match=says) as caught:
        merge_results(sources, places(tmp_path / "here"), None if says == "say with --name" else "sizes")
    assert "\n" not in str(caught.value) and not (tmp_path / "here").exists()


# -- archives ------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Places]:
    home = suite(tmp_path, [run("a"), run("b", state="failed", reason="no memory", values={})])
    (home / "weights.pt").write_bytes(b"weights")
    report = tmp_path / "reports" / "sizes" / "diagnostics"
    report.mkdir(parents=True)
    (report / "x.png").write_bytes(b"picture")
    (report.parent / "table.md").write_text("# table\n")
    (report.parent / "final.pt").write_bytes(b"weights")
    return home, places(tmp_path)


@pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
def test_an_archive_is_the_same_bytes_and_holds_records_and_report_and_no_weights(
    tmp_path: Path, published: tuple[Path, Places], ending: str
) -> None:
    one, two = tmp_path / f"one{ending}", tmp_path / f"two{ending}"
    _, files = publish("sizes", published[1], one)
    for path in tmp_path.rglob("*"):
        os.utime(path, (1e9, 1e9))
    publish("sizes", published[1], two)
    assert one.read_bytes() == two.read_bytes()
    assert [f.removeprefix("sizes/") for f in files] == [
        "SHA256SUMS", "reports/diagnostics/x.png", "reports/table.md", "results/curves.parquet", "results/diagnostics/a.npz",
        "results/diagnostics/b.npz", "results/records.jsonl", "results/suite.json"]
    merge_results([str(one)], places(tmp_path / "other"))
    assert tree(tmp_path / "other/results/sizes") == {k: v for k, v in tree(published[0]).items() if not k.endswith(".pt")}


def test_the_checksums_are_those_of_sha256sum(tmp_path: Path, published: tuple[Path, Places]) -> None:
    publish("sizes", published[1], tmp_path / "one.tar.gz")
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    for line in (tmp_path / "out/sizes/SHA256SUMS").read_text().splitlines():
        digest, _, inside = line.partition("  ")
        assert hashlib.sha256((tmp_path / "out/sizes" / inside).read_bytes()).hexdigest() == digest


def packed(path: Path, files: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE, sums: bool = True) -> Path:
    """An archive as somebody hostile makes it, with true checksums."""
    if sums:
        lines = [f"{hashlib.sha256(d).hexdigest()}  {n.removeprefix('s/')}\n" for n, d in files]
        files = [*files, ("s/SHA256SUMS", "".join(lines).encode())]
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files:
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz") as archive:
        for i, (name, data) in enumerate(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = len(data) if i or kind == tarfile.REGTYPE else 0, tarfile.REGTYPE if i else kind, "/etc/passwd"
            archive.addfile(entry, io.BytesIO(data))
    return path


RECORD = ("s/results/records.jsonl", (run().model_dump_json() + "\n").encode())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
@pytest.mark.parametrize(("files", "says"), [
    ([("../../etc/cron.d/x", b"x"), RECORD], "leaves its folder"),
    ([("/etc/passwd", b"x"), RECORD], "leaves its folder"),
    ([("s/results/../../x", b"x"), RECORD], "leaves its folder"),
    ([("s/a\\..\\b", b"x"), RECORD], "leaves its folder"),
    ([RECORD, RECORD], "more than once"),
    ([RECORD, ("t/results/x", b"x")], "one folder named as its suite"),
    ([("..hidden/results/records.jsonl", RECORD[1])], "one folder named as its suite"),
    ([("s/results/suite.json", b"{}")], r"holds no records\.jsonl"),
])
def test_hostile_archives_are_refused_in_one_sentence(
    tmp_path: Path, files: list[tuple[str, bytes]], says: str, ending: str
) -> None:
    path = packed(tmp_path / f"x{ending}", files, sums="one folder" not in says)
    with pytest.raises(BadInput, match=says) as caught:
        merge_results([str(path)], places(tmp_path / "here"))
    assert "\n" not in str(caught.value) and not (tmp_path / "here").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(BadInput, match="which is no file"):
        opened(packed(tmp_path / "x.tar.gz", [("s/results/link", b""), RECORD], kind))


@pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
def test_an_archive_that_unpacks_to_too_much_is_refused_without_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(share, "MOST_BYTES", 10_000)
    monkeypatch.setattr(share, "MOST_FILES", 5)
    big = packed(tmp_path / f"big{ending}", [RECORD, ("s/reports/x.png", bytes(20_000))])
    many = packed(tmp_path / f"many{ending}", [(f"s/reports/{i}.png", b"") for i in range(9)])
    for path in (big, many):
        with pytest.raises(BadInput, match="more than an archive may"):
            opened(path)


def test_a_tar_whose_headers_alone_are_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "MOST_BYTES", 10_000)
    monkeypatch.setattr(share, "MOST_FILES", 5)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("s/x")
        entry.pax_headers = {"comment": "x" * 100_000}
        archive.addfile(entry)
    with pytest.raises(BadInput, match="more than an archive may"):
        opened(tmp_path / "x.tar.gz")


def test_a_changed_missing_or_unlisted_file_is_named(tmp_path: Path, published: tuple[Path, Places]) -> None:
    publish("sizes", published[1], tmp_path / "one.tar.gz")
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        files = [(m.name, archive.extractfile(m).read()) for m in archive]
    table = "sizes/reports/table.md"
    for changed, says in (
        ([(n, b"# other\n" if n == table else d) for n, d in files], r"reports/table\.md is not what SHA256SUMS says"),
        ([(n, d) for n, d in files if n != table], r"reports/table\.md is missing"),
        ([*files, ("sizes/reports/more.md", b"")], r"reports/more\.md is not in SHA256SUMS"),
        ([(n, d) for n, d in files if n != "sizes/SHA256SUMS"], "it has no SHA256SUMS"),
    ):
        with pytest.raises(BadInput, match=says):
            opened(packed(tmp_path / "changed.tar.gz", changed, sums=False))


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no tar" * 999), b"PK\x03\x04"])
@pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
def test_what_is_no_archive_is_refused_in_one_sentence(tmp_path: Path, content: bytes, ending: str) -> None:
    (tmp_path / f"x{ending}").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        opened(tmp_path / f"x{ending}")
    assert "\n" not in str(caught.value)


def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, published: tuple[Path, Places]) -> None:
    for ending in (".tar.gz", ".zip"):
        path, _ = publish("sizes", published[1], tmp_path / f"x{ending}")
        for share_of in (0.3, 0.9):
            (tmp_path / f"cut{ending}").write_bytes(path.read_bytes()[: int(share_of * path.stat().st_size)])
            with pytest.raises(BadInput):
                opened(tmp_path / f"cut{ending}")


def test_publishing_what_is_not_there_or_into_another_kind_of_file_is_refused(tmp_path: Path, published: tuple[Path, Places]) -> None:
    with pytest.raises(BadInput, match="there are no records of nothing to publish"):
        publish("nothing", published[1], tmp_path / "x.zip")
    with pytest.raises(BadInput, match=r"an archive is a \.tar\.gz or a \.zip"):
        publish("sizes", published[1], tmp_path / "x.rar")


def test_the_commands_pack_and_join(tmp_path: Path, published: tuple[Path, Places]) -> None:
    def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=tmp_path, text=True, capture_output=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT)})

    assert "sizes.tar.gz: 8 files" in bench("publish", "sizes").stdout
    done = bench("merge", "alice=sizes.tar.gz", "--name", "joined", "--json")
    assert json.loads(done.stdout)["runs"] == 2 and (tmp_path / "results/joined/records.jsonl").is_file()
    refused = bench("merge", "sizes.rar")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1

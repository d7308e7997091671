"""Provenance: commit and changes of the code, versions, digests; nothing of the machine. And the trackers."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from report_records import record
from tiny import places

from bench import provenance as origin
from bench.errors import BadInput
from bench.provenance import changed, changes_told, git_state, provenance, save_code, source_digest, versions
from bench.registry import available, resolve
from bench.report.spec import ColumnKey, RowKey, TableSpec
from bench.report.tables import build_table

ROOT = Path(__file__).parents[1]


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository shaped like ours, with one commit."""
    root = tmp_path / "repository"
    (root / "bench").mkdir(parents=True)
    (root / "results").mkdir()
    (root / "bench" / "__init__.py").write_text("one\n")
    (root / "results" / "records.jsonl").write_text("{}\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", "first")
    monkeypatch.setattr(origin, "ROOT", root)
    return root


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True, text=True).stdout


def state(root: Path) -> tuple[str | None, bytes]:
    git_state.cache_clear()
    return git_state(root)


def test_a_clean_checkout_is_its_commit(repository):
    commit = git(repository, "rev-parse", "HEAD").strip()
    assert state(repository) == (commit, b"")
    (repository / "results" / "records.jsonl").write_text("new numbers\n")
    assert state(repository) == (commit, b"")               # results are no code


def test_changed_and_untracked_code_is_dirty_and_each_change_has_its_own_digest(repository):
    seen = [state(repository)[1]]
    (repository / "bench" / "__init__.py").write_text("two\n")
    seen.append(state(repository)[1])
    (repository / "bench" / "mine.py").write_text("three\n")
    seen.append(state(repository)[1])
    (repository / "bench" / "mine.py").write_text("four\n")
    seen.append(state(repository)[1])
    assert len(set(seen)) == 4 and b"+two" in seen[1] and b"four" in seen[3]


def test_without_git_or_inside_somebody_elses_repository_there_is_no_commit(repository, tmp_path):
    assert state(tmp_path / "nowhere") == (None, b"")
    installed = repository / "venv" / "site-packages"
    (installed / "bench").mkdir(parents=True)
    (installed / "bench" / "__init__.py").write_text("installed\n")
    assert state(installed) == (None, b"")


def test_provenance_names_neither_the_machine_nor_a_path():
    facts = provenance()
    text = json.dumps(facts)
    assert set(facts) == {"commit", "dirty", "diff", "versions", "python", "platform"}
    assert facts["python"] == platform.python_version() and "submitit" in facts["versions"]
    assert str(ROOT) not in text and str(Path.home()) not in text
    # A host called like a word of the platform's name cannot be told from it.
    assert len(socket.gethostname()) < 4 or socket.gethostname() not in text


def test_versions_are_read_without_importing_and_absent_packages_are_left_out():
    code = (
        "import sys; from bench.provenance import versions; found = versions(['torch', 'no-such-thing']);"
        "print(sorted(found), 'torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "['torch'] False\n"
    assert versions(["no-such-thing"]) == {}


def test_a_source_digest_moves_with_names_and_code_and_not_with_order_or_place(tmp_path, monkeypatch):
    def digest_of(root: Path, files: dict[str, str]) -> str:
        monkeypatch.setattr(origin, "ROOT", root)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return source_digest(root / name for name in files)

    first = digest_of(tmp_path / "here", {"bench/a.py": "x = 1", "bench/b.py": "x = 2"})
    assert digest_of(tmp_path / "there", {"bench/b.py": "x = 2", "bench/a.py": "x = 1"}) == first
    bare = "import os\n# why\nx = (\n1)  # because\n'''what'''\n"
    assert digest_of(tmp_path / "said", {"bench/a.py": bare, "bench/b.py": "x = 2"}) == first
    assert digest_of(tmp_path / "swapped", {"bench/a.py": "x = 2", "bench/b.py": "x = 1"}) != first
    assert digest_of(tmp_path / "moved", {"bench/a.py": "x = 1; x = 2", "bench/b.py": ""}) != first
    assert digest_of(tmp_path / "named", {"bench/a.py": "x = 1", "bench/c.py": "x = 2"}) != first


def test_the_code_of_a_submission_is_kept_with_its_run(repository, tmp_path):
    (repository / "bench" / "__init__.py").write_text("two\n")
    origin.git_state.cache_clear()
    before = git_state(repository)
    folder = tmp_path / "code"
    folder.mkdir()
    original, origin.git_state = origin.git_state, lambda: before
    try:
        save_code(folder)
    finally:
        origin.git_state = original
    assert json.loads((folder / "provenance.json").read_text())["dirty"] is True
    assert b"+two" in (folder / "changes.patch").read_bytes()


# -- code that changed under a run


HERE = {"commit": "b" * 40, "dirty": False, "diff": None, "versions": {"torch": "2.1", "numpy": "2.0"}, "python": "3.11.7",
        "platform": "here"}


def test_what_changed_is_told_as_it_was_and_the_platform_does_not_count():
    assert changed({**HERE, "platform": "there"}, HERE) == {} == changed({}, HERE)
    assert changes_told(HERE, HERE) == ""
    before = {**HERE, "commit": None, "diff": "0123", "versions": {"torch": "2.0", "einops": "0.8", "numpy": "2.0"}}
    assert changed(before, HERE) == {"commit": None, "diff": "0123", "versions": {"torch": "2.0", "einops": "0.8"}}
    assert changes_told(before, HERE) == ("commit unknown is bbbbbbbbbbbb now, what is not committed is other, "
                                          "einops 0.8 is unknown now, torch 2.0 is 2.1 now")
    assert changed({**HERE, "python": "3.12.0"}, HERE) == {"python": "3.12.0"}


def test_a_later_life_with_other_code_keeps_its_own_beside_the_first_ones(tmp_path, monkeypatch):
    def life(commit: str, patch: bytes = b"") -> list[str]:
        monkeypatch.setattr(origin, "provenance", lambda: {**HERE, "commit": commit, "diff": patch.decode() or None})
        monkeypatch.setattr(origin, "git_state", lambda: (commit, patch))
        save_code(tmp_path)
        return sorted(p.name for p in tmp_path.iterdir())

    assert life("one", b"mine") == life("one", b"mine") == ["changes.patch", "provenance.json"]
    two = ["changes.patch", "provenance-1.json", "provenance.json"]
    assert life("two") == life("one", b"mine") == life("two") == two                    # also back to known code
    assert life("one", b"other") == sorted([*two, "changes-2.patch", "provenance-2.json"])
    assert json.loads((tmp_path / "provenance.json").read_text())["diff"] == "mine"
    assert (tmp_path / "changes-2.patch").read_bytes() == b"other"


SUITE = """
name: code
question: Is it said which code made a number?
base:
  dataset: {name: photos, image_size: 16, train_images: 16, test_images: 8}
  tokenizer: {name: vqvae, hidden: 8, quantizer: {name: vq, codebook_size: 16, codebook_dim: 4}}
  objective: {name: reconstruction}
  optimizers: {tokenizer: {lr: 1e-3}}
  train: {steps: 6, batch_size: 4}
  measure: {values: [psnr]}
"""


def test_a_record_names_the_code_of_submission_and_of_earlier_lives_where_it_was_other(tmp_path, monkeypatch, caplog):
    import bench.execute as executing
    from bench.runs import RunFolder
    from bench.stopping import Interrupted, Stop
    from bench.suite import Suite

    where = places(tmp_path)
    (tmp_path / "code.yaml").write_text(SUITE)
    run, = Suite.load(tmp_path / "code.yaml").expand(where)
    folder = RunFolder(where.runs, run.train_id)

    def life(commit: str, submitted: dict | None = None, until: int | None = None):
        monkeypatch.setattr(executing, "provenance", lambda: {**HERE, "commit": commit})
        stop = Stop()
        if until == 0:
            stop.ask("asked")
        return executing.execute(run, where, device="cpu", submitted=submitted, stop=stop,
                                 progress=None if until is None else lambda state: stop.ask("asked"))

    with pytest.raises(Interrupted):
        life("zero", until=0)                               # made no step, so that nothing of it is in the weights
    for commit in ("one", "two", "one"):
        with pytest.raises(Interrupted):
            life(commit, until=1)
    caplog.clear()
    record = life("three", {**HERE, "commit": "one", "platform": "there"})
    assert record.provenance["commit"] == "three"
    assert record.provenance["submitted"] == {"commit": "one"}
    assert record.provenance["earlier"] == [{"commit": "two"}, {"commit": "one"}]
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        f"{run.label}: this is not the code that was submitted: commit one is three now"]
    assert folder.record() == record
    again, = Suite.load(tmp_path / "code.yaml", ["seeds=[2]"]).expand(where)
    run = again
    same = life("three", {**HERE, "commit": "three"})
    assert not {"submitted", "earlier"} & same.provenance.keys()


def test_a_table_says_which_runs_were_made_with_code_that_changed():
    def notes(*provenances: dict, **changes: object) -> list[str]:
        records = [record(f"{i:012x}", {"psnr": 30.0 + i}, seed=i, provenance=p, **changes)
                   for i, p in enumerate(provenances)]
        spec = TableSpec(name="t", rows=(RowKey(key="tokenizer.quantizer.codebook_size"),), columns=(ColumnKey(key="psnr"),))
        return [note for note in build_table(records, spec).notes if "code" in note and "Each run" not in note]

    plain = {"commit": "a"}
    moved = {"commit": "b", "submitted": {"commit": "a", "versions": {"torch": "2.0"}}}
    again = {"commit": "b", "submitted": {"diff": None}}
    continued = {"commit": "b", "earlier": [{"commit": "a"}, {"python": "3.10.1"}]}
    assert notes(plain) == []
    assert notes(plain, moved) == ["1 run was trained with code that changed after submission (commit, torch)."]
    assert notes(moved, again) == [
        "2 runs were trained with code that changed after submission (commit, torch, uncommitted changes)."]
    assert notes(continued, plain) == ["1 run was continued with other code than before (Python, commit)."]
    assert notes(moved, continued, state="failed") == []


# -- trackers


def test_both_trackers_are_known_by_their_files():
    assert available("tracker") == ["tensorboard", "wandb"]


@pytest.mark.parametrize("name, package", [("tensorboard", "tensorboard.summary"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_says_what_to_install(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=r"pip install tokenizer-bench\[trackers\]"):
        resolve("tracker", name)(tmp_path / "abc" / name, "a run", {})


def test_tensorboard_gets_every_logged_number(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `trackers` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = resolve("tracker", "tensorboard")(tmp_path / "abc" / "tensorboard", "a run", {"seed": 1})
    tracker.log(3, {"pixel": 0.5, "test/pixel": 0.25})
    tracker.log(4, {"pixel": float("nan")})
    tracker.close()
    found = EventAccumulator(str(tmp_path / "abc" / "tensorboard"))
    found.Reload()
    assert sorted(found.Tags()["tensors"]) == ["pixel", "test/pixel"]
    assert [event.step for event in found.Tensors("pixel")] == [3, 4]


def test_wandb_works_without_a_network_and_without_being_asked(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra `trackers` is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = resolve("tracker", "wandb")(tmp_path / "abc" / "wandb", "a run", {"seed": 1})
    tracker.log(3, {"pixel": 0.5})
    tracker.close()
    files = [name for _, _, names in os.walk(tmp_path / "abc" / "wandb") for name in names]
    assert "run-abc.wandb" in files

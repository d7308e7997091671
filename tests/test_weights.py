"""Where weight files are found, what counts as their identity, and how they are fetched. Protocols, too."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import BadInput
from bench.places import Places
from bench.protocol import FOLDER, load_protocol, protocols
from bench.registry import signature
from bench.spec import bind
from bench.weights import FILES, HUB, WeightFile, download, find, identity, missing, needed, sentence, sha256

OFFICIAL = b"the published bytes"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    for name in ("BENCH_WEIGHTS", "BENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BENCH_CONFIG", str(tmp_path / "none.yaml"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return Places.find(weights=tmp_path / "weights", cache=tmp_path / "cache")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    """A file that can be had under a URL, entered as "tiny"."""
    source = tmp_path / "server.bin"
    source.write_bytes(OFFICIAL)
    prefix = hashlib.sha256(OFFICIAL).hexdigest()[:8]
    known = WeightFile(f"tiny-{prefix}.pth", source.as_uri(), prefix, 1, "none")
    monkeypatch.setitem(FILES, "tiny", known)
    return known


def put(folder: Path, known: WeightFile, content: bytes = OFFICIAL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / known.file
    path.write_bytes(content)
    return path


def test_file_names_hold_the_start_of_their_hash() -> None:
    for known in FILES.values():
        if known.url.startswith(HUB):           # of a repository on the hub: at a revision, its folder's name kept
            _, repository, where, revision, name = known.url.removeprefix(f"{HUB}/").split("/")
            assert where == "resolve" and len(revision) == 40 and known.file == f"{repository}/{name}" and known.prefix
        elif known.url:                         # others are named by whoever made them
            assert known.file.endswith(f"-{known.prefix}.pth") and known.url.endswith(f"/{known.file}")


def test_bench_weights_comes_before_the_torch_cache(places, published, tmp_path, monkeypatch) -> None:
    assert find("tiny", places) is None and missing(["tiny", "tiny"], places) == ["tiny"]
    hub = put(tmp_path / "torch" / "hub" / "checkpoints", published)
    assert find("tiny", places) == hub
    own = put(places.weights, published)
    assert find("tiny", places) == own and missing(["tiny"], places) == []
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    own.unlink()
    assert find("tiny", places) is None
    assert put(tmp_path / "xdg" / "torch" / "hub" / "checkpoints", published) == find("tiny", places)


def test_identity_is_the_official_hash_unless_another_file_is_here(places, published) -> None:
    assert identity("tiny", places) == published.prefix             # not here: planned as the official one
    put(places.weights, published)
    assert identity("tiny", places) == published.prefix
    put(places.weights, published, b"my own")
    assert identity("tiny", places) == hashlib.sha256(b"my own").hexdigest()[:12]


def test_hashes_are_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    cache = tmp_path / "cache"
    first = sha256(path, cache)
    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert sha256(path, cache) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert sha256(path, cache) == hashlib.sha256(b"two").hexdigest()
    (tmp_path / "blocked").write_text("a file where the cache folder would be")
    assert sha256(path, tmp_path / "blocked") == hashlib.sha256(b"two").hexdigest()
    for kept in (cache / "sha256").iterdir():
        kept.write_text("damaged")
    assert sha256(path, cache) == hashlib.sha256(b"two").hexdigest()


def test_what_is_missing_is_said_in_one_sentence(places: Places) -> None:
    said = sentence(["lpips_alex", "inception"], places, ["lpips", "rfid"])
    for part in ("alexnet-owt-7be5be79.pth", "6726825d", str(places.weights), "BENCH_WEIGHTS",
                 "bench prepare", "take lpips, rfid out of measure.values", "command line"):
        assert part in said
    assert "\n" not in said
    with pytest.raises(BadInput, match="did you mean lpips_alex"):
        find("lpips_alexx", places)


def test_a_download_is_checked_and_appears_whole(places: Places, published: WeightFile) -> None:
    seen = []
    path = download("tiny", places, lambda *done: seen.append(done))
    assert path == places.weights / published.file and path.read_bytes() == OFFICIAL
    assert seen[-1] == (len(OFFICIAL), len(OFFICIAL))
    assert [p.name for p in places.weights.iterdir()] == [published.file]
    seen.clear()
    assert download("tiny", places, lambda *done: seen.append(done)) == path and not seen      # kept


def test_a_download_without_bench_weights_goes_to_the_torch_cache(places, published, tmp_path) -> None:
    places = Places.find(cache=tmp_path / "cache")
    assert download("tiny", places) == tmp_path / "torch" / "hub" / "checkpoints" / published.file


@pytest.mark.parametrize("fault", ["wrong bytes", "no such address", "folder cannot be written"])
def test_a_failed_download_leaves_nothing_and_says_what_to_do(fault, places, published, tmp_path) -> None:
    match fault:
        case "wrong bytes":
            (tmp_path / "server.bin").write_bytes(b"something else")
        case "no such address":
            (tmp_path / "server.bin").unlink()
        case "folder cannot be written":
            places.weights.write_text("a file")
    with pytest.raises(BadInput, match=published.file):
        download("tiny", places)
    assert not places.weights.is_dir() or not list(places.weights.iterdir())


def test_needs_follow_the_keywords() -> None:
    lpips = signature("metric", "lpips").attributes
    assert needed(lpips, {"net": "alex"}) == ["lpips_alex"] and needed(lpips, {"net": "vgg"}) == ["lpips_vgg"]
    assert needed(signature("metric", "rfid").attributes, {}) == ["inception"]
    assert needed(signature("metric", "psnr").attributes, {}) == []


# -- protocols -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", protocols())
def test_every_protocol_binds_and_writes_out_every_keyword(name: str) -> None:
    protocol = load_protocol(name)
    for value, entry in protocol.values.items():
        given = {k: v for k, v in entry.items() if k != "prepare"}
        metric = given.pop("metric")
        bound = bind("metric", {"name": metric, **given}, ("values", value), _fail)
        neutral = signature("metric", metric).neutral       # keywords that came later, at what they were before
        # a protocol is frozen data: a changed default of a metric must not change it
        assert bound.kwargs == neutral | given
        assert set(needed(signature("metric", metric).attributes, bound.kwargs)) <= set(FILES)


def _fail(path, value, message):
    return AssertionError(f"{path} = {value!r}: {message}")


def test_the_standard_protocol_is_what_the_tables_were_made_with() -> None:
    protocol = load_protocol("ours-1")
    assert list(protocol.values) == ["psnr", "ssim", "lpips", "rfid", "usage", "perplexity", "usage_window",
                                     "perplexity_window"]
    assert protocol.values["lpips"]["net"] == "alex" and protocol.values["usage_window"]["window"] == 65536
    squeeze = load_protocol("ours-1-squeeze")
    assert squeeze.prepare == protocol.prepare
    assert {k: v for k, v in squeeze.values.items() if k != "lpips"} == {
        k: v for k, v in protocol.values.items() if k != "lpips"}


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="no protocol 'our-1'; did you mean ours-1"):
        load_protocol("our-1")
    with pytest.raises(BadInput):
        load_protocol("../protocols/ours-1")


def test_a_faulty_protocol_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.protocol.FOLDER", tmp_path)
    rest = "description: x\nprepare: {}\nvalues: "
    for name, text in {"a": "name: a\n", "b": f"name: other\n{rest}{{}}\n", "c": "[",
                       "d": f"name: d\n{rest}{{psnr: {{}}}}\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        with pytest.raises(BadInput, match=f"{name}.yaml"):
            load_protocol(name)


def test_weights_and_protocols_need_no_torch() -> None:
    code = ("import sys; import bench.weights, bench.protocol as p; p.load_protocol('ours-1'); "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parents[1], check=False).returncode == 0

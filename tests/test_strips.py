"""reconstructions.png of a suite: whose pictures stand where, who is left out and why, and that it stays small."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_records import record

from bench.report import strips
from bench.report.strips import GAP, LEAST_TILE, MARGIN, cut, render_reconstructions, wrapped
from bench.results import Record


def pictures(seed: int, count: int = 10, side: int = 8) -> np.ndarray:
    """uint8 [count, side, side, 3]"""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def grid(originals: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """As the evaluation writes it, told again: pairs in reading order, eight pictures a row, two black pixels around."""
    every = [p for pair in zip(originals, reconstructions, strict=True) for p in pair]
    framed = [np.pad(p, ((2, 0), (2, 0), (0, 0))) for p in every]
    across = min(8, len(framed))
    framed += [np.zeros_like(framed[0])] * (-len(framed) % across)
    rows = [np.concatenate(framed[i : i + across], 1) for i in range(0, len(framed), across)]
    return np.pad(np.concatenate(rows, 0), ((0, 2), (0, 2), (0, 0)))


def run(runs: Path, train_id: str, own: int, shared: int = 0, count: int = 10, side: int = 8, **more: Any) -> Record:
    folder = runs / train_id / "images"
    folder.mkdir(parents=True)
    made = grid(pictures(shared, count, side), pictures(own, count, side))
    Image.fromarray(made).save(folder / "reconstructions.png")
    data = {"test": {"fingerprint": "f", "images": count, "of": count}}
    return record(train_id, more.pop("values", {}), **{"data": data, "fields": {"dataset.image_size": side}, "label": train_id} | more)


def rows_of(paths: list[Path]) -> list[dict[str, str]]:
    with paths[1].open() as file:
        return list(csv.DictReader(file))


def tiles(path: Path, columns: int, images: int, side: int, top: int) -> np.ndarray:
    """[columns, images, side, side, 3] of the first band, one pixel of each block that shows one."""
    factor = -(-LEAST_TILE // side)
    size = side * factor
    pixels = np.asarray(Image.open(path))
    at = [[(top + j * (size + GAP), MARGIN + i * (size + GAP)) for j in range(images)] for i in range(columns)]
    return np.array([[pixels[y : y + size : factor, x : x + size : factor] for y, x in column] for column in at])


@pytest.mark.parametrize("count", [1, 3, 4, 10, 32])
def test_pictures_are_cut_out_of_what_the_evaluation_writes(tmp_path: Path, count: int) -> None:
    torch = pytest.importorskip("torch")
    from bench.evaluate import write_grid

    originals, made = pictures(1, count), pictures(2, count)
    write_grid(tmp_path / "g.png", *(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous() for x in (originals, made)))
    written = np.asarray(Image.open(tmp_path / "g.png"))
    np.testing.assert_array_equal(written, grid(originals, made))
    for found, wanted in zip(cut(written, count, 8, 8), (originals, made), strict=True):
        np.testing.assert_array_equal(found, wanted)
    for wrong in ((count, 9, 8), (count + 20, 8, 8)):
        with pytest.raises(ValueError, match="the picture has"):
            cut(written, *wrong)


def test_the_same_images_stand_in_rows_and_each_run_in_its_column(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    some = [run(runs, f"k={k}", k, values={"psnr": 20.0 + k}) for k in (16, 2, 128)]
    paths = render_reconstructions("s", some, runs, tmp_path)
    assert [p.name for p in paths] == ["reconstructions.png", "reconstructions.csv"]
    found = rows_of(paths)
    assert [(r["column"], r["train_id"], r["images"]) for r in found] == [("1", "k=2", "8"), ("2", "k=16", "8"), ("3", "k=128", "8")]
    top = MARGIN + 2 * strips.LINE + 6                  # a heading of one line, and the PSNR
    shown = tiles(paths[0], 4, 8, 8, top)
    for column, seed in zip(shown, (0, 2, 16, 128), strict=True):
        np.testing.assert_array_equal(column, pictures(seed)[:8])
    before = [p.read_bytes() for p in paths]
    again = render_reconstructions("s", some[::-1], runs, tmp_path / "again")
    assert [p.read_bytes() for p in again] == before


def test_runs_without_the_same_originals_are_left_out_and_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    some = [run(runs, t, i) for i, t in enumerate("abc", start=1)]
    some += [run(runs, "other", 4, shared=9), run(runs, "large", 5, side=16), run(runs, "cut", 6)]
    some.append(record("gone", {}))
    some.append(run(runs, "failed", 7, state="failed", reason="x"))
    (runs / "cut" / "images" / "reconstructions.png").write_bytes(b"\x89PNG")
    found = {r["train_id"]: r for r in rows_of(render_reconstructions("s", some, runs, tmp_path))}
    assert [t for t, r in found.items() if r["column"]] == ["a", "b", "c"] and "failed" not in found
    assert found["other"]["why not shown"] == found["large"]["why not shown"] == "its original images are other ones"
    assert found["gone"]["why not shown"] == "its folder holds no picture here"
    assert found["cut"]["why not shown"].startswith("its picture cannot be read")


def test_what_cannot_be_made_anew_is_kept(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    some = [run(runs, t, i) for i, t in enumerate("ab", start=1)]
    assert render_reconstructions("s", some, tmp_path / "nowhere", tmp_path) == []
    assert not (tmp_path / "s").exists()
    paths = render_reconstructions("s", some, runs, tmp_path)
    before = hashlib.sha256(paths[0].read_bytes()).hexdigest()
    (runs / "a" / "images" / "reconstructions.png").unlink()            # as on another machine
    assert render_reconstructions("s", some, runs, tmp_path) == []
    assert hashlib.sha256(paths[0].read_bytes()).hexdigest() == before
    assert len(rows_of(render_reconstructions("s", some[1:], runs, tmp_path))) == 1      # `a` is of the suite no more


def test_of_many_runs_one_a_setting_is_shown_and_bands_are_even(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    some = [run(runs, f"k={k} seed={s}", 10 * k + s, size=k, seed=s, count=4) for k in range(1, 11) for s in (1, 2)]
    paths = render_reconstructions("s", some, runs, tmp_path, most_images=2)
    found = rows_of(paths)
    assert [r["label"] for r in found if r["column"]] == [f"k={k} seed=1" for k in range(1, 11)]
    assert {r["why not shown"] for r in found if not r["column"]} == {"another seed is shown"}
    width = Image.open(paths[0]).width
    assert width == 2 * MARGIN + 6 * (LEAST_TILE + GAP)                 # two bands of the original and five runs
    paths = render_reconstructions("t", some, runs, tmp_path, most_images=2, most_runs=3)
    assert sorted({r["why not shown"] for r in rows_of(paths)}) == ["", "another seed is shown", "there is room for 3 runs"]


def test_large_pictures_are_shown_in_fewer_rows_or_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    some = [run(runs, f"r{i}", i, count=8, side=200) for i in (1, 2)]             # noise: nothing compresses it
    monkeypatch.setattr(strips, "MOST_BYTES", 2_400_000)
    paths = render_reconstructions("s", some, runs, tmp_path)
    assert {r["images"] for r in rows_of(paths)} == {"6"} and 1_500_000 < paths[0].stat().st_size < 2_400_000
    monkeypatch.setattr(strips, "MOST_BYTES", 500_000)
    paths = render_reconstructions("s", some, runs, tmp_path)
    assert {r["images"] for r in rows_of(paths)} == {"4"}
    assert paths[0].stat().st_size < 500_000 and Image.open(paths[0]).width == 2 * MARGIN + 3 * (100 + GAP)


def test_numbers_below_a_heading_were_measured_alike() -> None:
    from report_records import value

    some = [record("a", {"psnr": 20.0}), record("b", {"psnr": 21.0}, size=1024),
            record("c", {"psnr": value("psnr", 40.0, protocol="other")}, size=2048)]
    assert strips._numbers(some) == {"a": ("PSNR 20.00",), "b": ("PSNR 21.00",), "c": ()}


def test_a_network_that_is_not_the_usual_one_is_named_below_the_picture() -> None:
    from report_records import value

    some = [record("a", {"psnr": 20.0, "lpips": value("lpips", 0.2, keywords={"net": "squeeze"})})]
    assert strips._networks(some) == ["LPIPS with squeeze"]
    assert strips._networks([record("a", {"lpips": value("lpips", 0.2, keywords={"net": "alex"})})]) == []


class Fixed:
    """A font whose every letter is one wide."""

    def getlength(self, text: str) -> int:
        return len(text)


@pytest.mark.parametrize(("text", "lines"), [
    ("codebook_size=2048", ("codebook_", "size=2048")), ("vq  k=2", ("vq k=2",)), ("", ()), ("a" * 12, ("aaaaaaaaaa", "aa")),
    ("one two three four five six seven eight nine ten", ("one two", "three four", "five six", "seven", "eight nin…")),
])
def test_headings_are_broken_where_names_can_be(text: str, lines: tuple[str, ...]) -> None:
    found = wrapped(text, Fixed(), 10)
    assert found == lines and all(len(line) <= 10 for line in found)

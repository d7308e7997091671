"""Plausibility gates: each on numbers that cannot be, and silent on healthy ones, among them what is published."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_records import CELEBA, record, value

from bench.report.gates import _even_use, suspicions
from bench.results import DataRecord, Record, Value

ROOT = Path(__file__).resolve().parents[1]
HEALTHY = {"psnr": 31.5, "ssim": 0.94, "lpips": 0.03, "rfid": 16.8, "usage": 0.56, "perplexity": 240.0}


def sane(name: str, values: dict[str, Any], **changes: Any) -> Record:
    return record(f"row-{name}", values, fields={"sanity": name}, **changes)


IDENTITY = sane("identity", {"psnr": 100.0, "ssim": 1.0000000027, "lpips": 0.0, "rfid": 1e-9})
COLOUR = sane("mean_colour", {"psnr": 13.1, "ssim": 0.2})


def doubts(values: dict[str, Any], sanity: list[Record] | None = None, **changes: Any) -> dict[str, list[str]]:
    return suspicions([record("a", values, **changes)], [IDENTITY, COLOUR] if sanity is None else sanity).get("a", {})


def test_healthy_numbers_are_not_doubted() -> None:
    runs = [record("a", HEALTHY), record("b", HEALTHY | {"psnr": 31.0, "rfid": 20.0}, seed=2)]
    assert suspicions(runs, [IDENTITY, COLOUR]) == {} == suspicions(runs, [])


@pytest.mark.parametrize("name, number", [("psnr", 100.1), ("ssim", 1.001), ("lpips", -0.001), ("rfid", -0.1)])
def test_nothing_is_better_than_the_formula_allows(name: str, number: float) -> None:
    said, = doubts({name: number}, [])[name]
    assert "cannot be: at best it is" in said


def test_nothing_is_better_than_the_originals_themselves() -> None:
    """Under a protocol that truncates, the originals themselves have far less than 100 dB."""
    truncated = {"settings": {"prepare": {"round": "truncate"}, "weights": "live"}}
    row = sane("identity", {"psnr": value("psnr", 51.0, **truncated)})
    mine = {"settings": {"prepare": {"round": "truncate"}, "weights": "average", "limit": None}}
    said, = doubts({"psnr": value("psnr", 55.0, **mine)}, [row])["psnr"]
    assert said == "psnr 55 dB cannot be: the originals themselves have 51 (row identity)"
    assert not doubts({"psnr": value("psnr", 50.0, **mine)}, [row])
    assert not doubts({"psnr": value("psnr", 55.0)}, [row]), "under other conditions it says nothing"


@pytest.mark.parametrize("name, number", [("psnr", 100.0), ("ssim", 1.0), ("lpips", 0.0), ("rfid", 0.0)])
def test_the_numbers_of_the_originals_are_doubted(name: str, number: float) -> None:
    said, = doubts({name: number})[name]
    assert "were they compared with the reconstructions?" in said


def test_one_colour_per_image_is_beaten() -> None:
    said, = doubts({"psnr": 12.9})["psnr"]
    assert said == "psnr 12.9 dB is no better than one colour per image, which has 13.1"
    assert not doubts({"psnr": 13.2})
    other = CELEBA | {"test": DataRecord(fingerprint="another", images=705, of=19962)}
    assert not doubts({"psnr": 12.9}, data=other), "of other images"


def test_constant_reconstructions_are_told_on_every_value() -> None:
    found = doubts({"ssim": value("ssim", 0.3, details={"constant": 1.0}), "lpips": 0.5})
    assert found == {"ssim": ["all reconstructions are one and the same picture"]}


def usage(number: float, codes: int, name: str = "usage", **details: float) -> Value:
    return value(name, number, details={"codes": float(codes), **details})


def test_usage_is_at_most_what_so_many_codes_can_show() -> None:
    assert "the most of 256 codes is 50 %" in doubts({"usage": usage(0.51, 256)}, size=512)["usage"][0]
    assert "the most of 256 codes is 25 %" in doubts({"usage": usage(0.3, 256, hard_ceiling=0.25)}, size=512)["usage"][0]
    assert "cannot be" in doubts({"usage": usage(1.01, 65536)}, size=512)["usage"][0]
    assert not doubts({"usage": usage(1.0, 180480)}, size=512)
    assert not doubts({"usage": value("usage", 0.9)}, size=512), "an old record without details"


def test_usage_of_a_window_is_held_against_even_use() -> None:
    """65,536 even draws of 16,384 codes show 98.17 % of them, give or take 0.10 %: 98.77 % is 6 sigma above."""
    assert not doubts({"usage_window": usage(0.987, 65536, "usage_window")}, size=16384)
    said, = doubts({"usage_window": usage(0.99, 65536, "usage_window")}, size=16384)["usage_window"]
    assert "more than 65,536 independent codes show when all are equally likely (98.17 % ± 0.1008 %)" in said


@pytest.mark.parametrize("size, codes", [(512, 2000), (2, 3), (10, 7), (3, 2), (1, 5), (4096, 5000)])
def test_even_use_equals_a_simulation(size: int, codes: int) -> None:
    generator = np.random.default_rng(0)
    shares = [len(np.unique(generator.integers(0, size, codes))) / size for _ in range(3000)]
    mean, deviation = _even_use([size], codes)
    assert mean == pytest.approx(np.mean(shares), abs=5 * deviation / 3000**0.5 + 1e-12)
    assert deviation == pytest.approx(np.std(shares), rel=0.07, abs=1e-12)
    assert _even_use([size, size], codes) == pytest.approx((mean, deviation / 2**0.5))


def test_perplexity_lies_between_one_and_the_codes_in_use() -> None:
    assert "one code alone" in doubts({"perplexity": 0.5})["perplexity"][0]
    assert "there are 512 codes" in doubts({"perplexity": 513.0})["perplexity"][0]
    used = {"perplexity": value("perplexity", 300.0, details={"used": 287.0})}
    assert "287 codes are in use" in doubts(used)["perplexity"][0]
    corrected = value("perplexity", 300.0, details={"used": 287.0}, keywords={"correction": "chao-shen"})
    assert not doubts({"perplexity": corrected}), "unseen codes are estimated"


def test_perplexity_and_usage_over_one_window_agree() -> None:
    found = doubts({"usage": 0.5, "perplexity": 260.0})
    assert found.keys() == {"usage", "perplexity"} and "that is 256 codes in use" in found["usage"][0]
    assert not doubts({"usage": 0.5, "perplexity": 255.9})
    assert not doubts({"usage_window": 0.5, "perplexity": 260.0}), "of another window"
    assert not doubts({"usage": value("usage", 0.5, keywords={"at_least": 0.08}), "perplexity": 260.0})


# -- rFID against LPIPS ------------------------------------------------------------------------------------------------

LFQ = {"psnr": 23.2721, "lpips": 0.2314, "rfid": 66.2169}       # published: xyfJASON, ImageNet 64
IBQ = {"psnr": 25.0509, "lpips": 0.1320, "rfid": 274.7465}


def test_the_published_ibq_row_is_doubted() -> None:
    found = suspicions([record("lfq", LFQ, quantizer="lfq"), record("ibq", IBQ, quantizer="ibq")], [])
    assert found.keys() == {"ibq"} and found["ibq"].keys() == {"rfid"}
    said, = found["ibq"]["rfid"]
    assert "4.1 times that of lfq" in said and "are better" in said


def test_a_discriminator_or_other_images_explain_an_order() -> None:
    """rFID 5 with LPIPS 0.18 beside rFID 40 with LPIPS 0.15: one was trained with a discriminator."""
    sharp, smooth = {"psnr": 20.0, "lpips": 0.18, "rfid": 5.0}, {"psnr": 25.0, "lpips": 0.15, "rfid": 40.0}
    fields = [{"objective.name": n} for n in ("adversarial", "reconstruction")]
    assert not suspicions([record("a", sharp, fields=fields[0]), record("b", smooth, fields=fields[1])], [])
    assert suspicions([record("a", sharp, fields=fields[1]), record("b", smooth, fields=fields[1])], [])
    few = [record("a", sharp), record("b", {n: value(n, x, images=64) for n, x in smooth.items()})]
    assert not suspicions(few, [])
    tokens = [record("a", sharp, layout={"num_tokens": 64}), record("b", smooth)]
    assert not suspicions(tokens, [])
    assert not suspicions([record("a", sharp, state="failed"), record("b", smooth)], [])


def published() -> list[Record]:
    """Every published row as a record; runs of one protocol, data set and source are comparable."""
    path = next((p for p in (ROOT / "results/published.csv", Path(os.environ.get("BENCH_SHARED") or ROOT.parent / "shared")
                             / "reference/published.csv") if p.is_file()), None)
    if path is None:
        pytest.skip("results/published.csv is not here")
    units = {"psnr": ("dB", "higher"), "ssim": ("", "higher"), "lpips": ("", "lower"), "rfid": ("", "lower"),
             "usage": ("share", "higher"), "perplexity": ("", "higher")}
    runs: dict[tuple[str, ...], dict[str, Any]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            metric = row["metric"].removesuffix("_window")
            if metric not in units:
                continue
            key = tuple(row[k] for k in ("system", "variant", "protocol", "dataset", "image_size", "split", "n_images"))
            run = runs.setdefault((*key, row["source"].partition("@")[0]), {"row": row, "values": {}})
            unit, direction = units[metric]
            run["values"][row["id"]] = Value(
                name=row["metric"], metric=metric, number=float(row["value"]), unit=unit, direction=direction,
                images=int(row["n_images"] or 0), protocol=row["protocol"],
                keywords={"window": 65536} if row["metric"].endswith("_window") else {})
    made = []
    for key, run in runs.items():
        size, tokens = run["row"]["codebook_size"], run["row"]["tokens"]
        made.append(Record(
            train_id="|".join(key), label=f"{key[0]} {key[1]}", state="done", spec={}, fields={}, values=run["values"],
            layout={"vocab_sizes": [int(size)] if size.isdigit() else [], "num_tokens": tokens},
            data={"test": DataRecord(fingerprint="|".join(key[3:6]), images=int(key[6] or 0))}))
    return made


def test_of_all_published_rows_only_those_of_ibq_are_doubted() -> None:
    """Its authors' rFID of 270 stays whatever LPIPS does (vqvae_vqgan_cvq.md, 1i, calls it a bookkeeping error)."""
    records = published()
    assert sum({"psnr", "lpips", "rfid"} <= {v.metric for v in r.values.values()} for r in records) > 60
    found = suspicions(records, [])
    assert {t.split("|")[0] for t in found} == {"ibq-simplecnn"} and len(found) == 3
    assert {name for of in found.values() for name in of} == {"rfid"}

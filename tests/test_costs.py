"""Costs of tokenizers: MACs against other counts, whose costs a record gets, and that no two machines share a column."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from report_records import value
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import catalogue, stopwatch, throughput
from bench.costs import Profile, architecture_id, conditions, system_records, with_costs
from bench.errors import BadInput
from bench.places import Places
from bench.profile import Session
from bench.registry import available, resolve, signature
from bench.report.cost_report import cost_tables, render_costs
from bench.report.figures import render_figures
from bench.report.spec import FigureSpec, ReportSpec, TableSpec
from bench.report.tables import build_table
from bench.results import Record
from bench.spec import ComponentSpec, bind
from bench.structure import structure
from bench.throughput import architectures, of_checkpoint, of_suite, profile_tokenizers, systems
from bench.timings import Architecture, Machine, Timing, append_architectures, compare, read_architectures, settled

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
HERE = Machine(device="cpu", processor="A", cores=2, threads=2, system="Linux-x86_64", torch="2.0")
THERE = HERE.model_copy(update={"device": "cuda", "processor": "H100"})


def bound(**said: Any) -> ComponentSpec:
    def fail(path: tuple, given: Any, sentence: str) -> Exception:
        return AssertionError(f"{path} {given}: {sentence}")

    return bind("tokenizer", said, ("tokenizer",), fail)


# -- counts ------------------------------------------------------------------------------------------------------------


def test_macs_of_the_vqvae_are_those_of_its_layers() -> None:
    """4x4 convolutions of stride 2 to a quarter of the side, residual blocks of 3x3 and 1x1, one 1x1 to the codes' width;
    the nearest code costs positions x codes x width, and the way back is the same network mirrored."""
    hidden, inner, codes, width, side = 8, 8, 16, 4, 16
    model = bound(name="vqvae", hidden=hidden, quantizer={"name": "vq", "codebook_size": codes, "codebook_dim": width})
    half, quarter = (side // 2) ** 2, (side // 4) ** 2
    tokenizer = resolve("tokenizer", "vqvae")(side, **model.partial().keywords)
    convolutions = {name: m for name, m in tokenizer.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)}
    assert {m.in_channels for m in convolutions.values()} <= {3, width, hidden, hidden // 2, inner}
    by_hand = {"encode": quarter * codes * width, "decode": 0}
    for name, m in convolutions.items():
        # a convolution multiplies at each output, a transposed one at each input
        taps = m.weight.numel()
        down = name.startswith("encoder") or "to_latents" in name
        at = quarter
        if m.stride == (2, 2) and 3 in (m.in_channels, m.out_channels):
            at = half
        by_hand["encode" if down else "decode"] += at * taps
    assert structure(model, side).macs == by_hand


@pytest.mark.parametrize("said", [
    {"name": "vqgan", "channels": 32, "multipliers": [1, 2], "attention": [2], "latent_channels": 8,
     "quantizer": {"name": "vq", "codebook_size": 32, "codebook_dim": 8}},
    {"name": "ldm", "channels": 32, "multipliers": [1, 2], "latent_channels": 4},
    {"name": "vqvae", "hidden": 8, "quantizer": {"name": "grouped", "groups": 2, "quantizer": {
        "name": "vq", "codebook_size": 32, "codebook_dim": 4}}},
    {"name": "vqvae", "hidden": 8, "quantizer": {"name": "codebook_vq", "codebook_size": 32, "codebook_dim": 4, "table": "linear"}},
], ids=lambda said: f"{said['name']}-{said.get('quantizer', {'name': ''})['name']}")
def test_macs_are_what_torch_counts_where_it_sees_the_search(said: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with the searches in torch's own products; torch counts twice the multiply-adds."""
    monkeypatch.setenv("BENCH_KERNELS", "0")
    model = bound(**said)
    tokenizer = model.partial()(16).eval()
    counted = {}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        images = torch.rand(1, 3, 16, 16) * 2 - 1
        out = tokenizer(images)
        for what, call in (("encode", lambda: tokenizer.tokenize(images)),
                           ("decode", lambda: tokenizer.decode(out.quantized) if out.codes is None else tokenizer.detokenize(out.codes))):
            with FlopCounterMode(display=False) as counter:
                call()
            counted[what] = counter.get_total_flops() // 2
    assert structure(model, 16).macs == counted


def test_parameters_belong_to_the_part_that_reads_them() -> None:
    model = bound(name="vqgan", channels=32, multipliers=[1, 2], attention=[2], latent_channels=8,
                  quantizer={"name": "ema_vq", "codebook_size": 32, "codebook_dim": 8})
    tokenizer = model.partial()(16)
    found = structure(model, 16).parameters
    names = {"encoder": ("encoder.", "to_latents."), "decoder": ("decoder.", "from_quantized.")}
    for part, prefixes in names.items():
        assert found[part] == sum(p.numel() for n, p in tokenizer.named_parameters() if n.startswith(prefixes)) > 0
    assert found["quantizer"] == 32 * 8                                    # a buffer here, and no less a table
    assert found["total"] == found["encoder"] + found["decoder"] + found["quantizer"]


def test_structures_are_equal_where_costs_are() -> None:
    def digest(**quantizer: Any) -> str:
        return structure(bound(name="vqvae", hidden=8, quantizer={"name": "vq", "codebook_size": 16, "codebook_dim": 4} | quantizer), 16).digest

    assert digest() == digest(init="normal") != digest(codebook_size=17)
    assert digest() != digest(normalize="both")


def test_counting_draws_no_number_and_leaves_no_device_behind() -> None:
    before = torch.random.get_rng_state()
    structure(bound(name="vqvae", hidden=8, quantizer={"name": "vq", "codebook_size": 16, "codebook_dim": 4}), 16)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.empty(1).device.type == "cpu"


# -- which systems -----------------------------------------------------------------------------------------------------


def test_var_has_its_own_image_size() -> None:
    found = systems(["var"], Places.find())
    assert {s.image_size for s in found} == {256} and {s.name for s in found} == {"imagenet256_var", "var-256"}
    session = Session.begin(CPU)
    records, groups, refused = architectures(found, session)
    assert not refused and len(groups) == 1 and records[0].layout["num_tokens"] == 680
    plain, _, refused = architectures(systems(["var"], Places.find(), 64), session)
    assert not plain and refused, "at 64 pixels it cannot be"


def test_published_systems_are_all_there_and_told_apart() -> None:
    found = systems([], Places.find())
    names = [s.name for s in found]
    assert len(set(names)) == len(names)
    assert {s.model.name for s in found} == set(available("tokenizer"))
    assert {"imagenet256_llamagen: VQ-8", "taming-f16-16384"} <= set(names)
    assert {s.image_size for s in found if s.name.startswith("simvq_imagenet128")} == {128}


def test_names_hold_the_fewest_settings_that_tell_systems_apart() -> None:
    a = {"tokenizer.name": "net", "tokenizer.quantizer.name": "lfq", "tokenizer.quantizer.bits": 10}
    b, c = a | {"tokenizer.quantizer.bits": 12}, {"tokenizer.name": "net", "tokenizer.quantizer.name": "vq"}
    assert throughput._told_apart([a]) == [""]
    assert throughput._told_apart([a, b, c]) == ["lfq, bits 10", "lfq, bits 12", "vq"]


GOLDEN = ROOT / "tests" / "parity" / "formats.npz"


def test_architectures_of_checkpoints_have_the_keys_that_formats_read() -> None:
    """Of each format a state dict of the public code at a small width is kept: its keywords are the same ones."""
    import numpy as np
    from parity.format_states import filled

    def shape(said: Any) -> Any:
        return {k: shape(v) if isinstance(v, dict) else said["name"] if k == "name" else None for k, v in said.items()}

    golden = np.load(GOLDEN)
    read: dict[str, list[Any]] = {}
    for case in {name.partition(".")[0] for name in golden.files}:
        told = json.loads(golden[f"{case}.told"].tobytes())
        name = catalogue.format_name(told["format"])
        said = resolve("format", name)().tokenizer(filled(told["shapes"]))
        read.setdefault(name, []).append(shape(json.loads(json.dumps(said))))
    compared = 0
    for name, said in throughput._architectures().items():
        if name in catalogue.checkpoints() and (known := read.get(catalogue.format_name(catalogue.load_checkpoint(name).format))):
            assert shape(said) in known, name
            compared += 1
    assert compared > 20


@pytest.mark.parametrize(("words", "image_size", "sentence"), [
    (["vqvaee"], None, "vqvaee: no tokenizer, no published checkpoint and no suite"),
    (["imagenet256_var"], 64, "--image-size 64: imagenet256_var has its own"),
    ([], 64, "--image-size 64: what is published has its own"),
])
def test_bad_names_are_one_sentence(words: list[str], image_size: int | None, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        systems(words, Places.find(), image_size)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


# -- timing ------------------------------------------------------------------------------------------------------------


def test_systems_of_one_structure_are_timed_once_at_each_batch() -> None:
    model = bound(name="vqvae", hidden=8, quantizer={"name": "vq", "codebook_size": 16, "codebook_dim": 4})
    other = bound(name="vqvae", hidden=8, quantizer={"name": "vq", "codebook_size": 16, "codebook_dim": 4, "init": "normal"})
    found = [throughput.System("one", model, 16), throughput.System("two", other, 16)]
    session = Session.begin(CPU)
    records, groups, _ = architectures(found, session)
    assert len({r.architecture for r in records}) == 2 and len({r.structure for r in records}) == 1
    timings = list(profile_tokenizers(groups, session=session, batches=(1, 2), rounds=2, threads=1, what=("encode", "decode", "train")))
    assert [(t.name, t.what, t.size["batch"]) for t in timings] == [
        ("one", what, batch) for batch in (1, 2) for what in ("encode", "decode", "train")]
    assert all(len(t.seconds) == 2 and not t.reason and t.memory is not None for t in timings)
    assert timings[2].macs == timings[0].macs + timings[1].macs > 0


def test_only_what_was_not_timed_alone_is_timed_again() -> None:
    model = bound(name="vqvae", hidden=8, quantizer={"name": "vq", "codebook_size": 16, "codebook_dim": 4})
    session = Session.begin(CPU)
    _, groups, _ = architectures([throughput.System("one", model, 16)], session)
    alone = [session.timing(kind="tokenizer", name="one", what=what, size={"image_size": 16, "batch": 1}, dtype="fp32",
                            structure=groups[0][1].digest, seconds=[1.0], processor_seconds=[float(session.machine.threads)])
             for what in ("encode", "decode")]
    shared = [alone[0], alone[1].model_copy(update={"processor_seconds": [0.7 * session.machine.threads]})]
    elsewhere = [t.model_copy(update={"machine": t.machine.model_copy(update={"cores": 99})}) for t in alone]
    for timings, batches, left in ((alone, (1,), 0), (alone, (1, 2), 1), (shared, (1,), 1), (elsewhere, (1,), 1), ([], (1,), 1),
                                   ([*shared, *alone], (1,), 0),
                                   ([*alone, shared[1].model_copy(update={"name": "another", "session": "9999"})], (1,), 1)):
        have = settled(timings, session.machine)
        assert len(throughput.unsettled(groups, have, batches=batches, what=("encode", "decode"), device=CPU)) == left


def test_a_case_that_has_taken_its_time_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> None: ...
    def quick() -> None: ...

    monkeypatch.setattr(stopwatch, "_timed", lambda call, repeats, device: (0.02 if call is slow else 0.001, 0.0))
    found = stopwatch.watch({"slow": slow, "quick": quick}, 4, CPU, memory=True, patience=0.03)
    assert (len(found["slow"].seconds), len(found["quick"].seconds)) == (2, 4)
    assert found["quick"].memory is None or found["quick"].memory >= 0


def test_two_rounds_are_no_verdict() -> None:
    def timing(seconds: list[float]) -> Timing:
        return Timing(session="2026", commit=None, dirty=None, machine=HERE, kind="tokenizer", name="a", what="encode", size={"batch": 1},
                      seconds=seconds)

    (change,) = compare([timing([1.0, 1.0])], [timing([2.0, 2.0])])
    assert change.verdict == "unmeasured" and "2 rounds" in change.note


# -- into records ------------------------------------------------------------------------------------------------------

SMALL = {"name": "vq", "codebook_size": 16, "codebook_dim": 4}


def architecture(hidden: int, macs: int, **changes: Any) -> Architecture:
    model = bound(name="vqvae", hidden=hidden, quantizer=SMALL)
    said: dict[str, Any] = {
        "architecture": architecture_id(model, 16), "structure": f"s{hidden}", "names": [f"net {hidden}"],
        "model": json.loads(model.model_dump_json()), "image_size": 16, "layout": {"num_tokens": 16, "bits_per_image": 64.0},
        "parameters": {"total": 100 * hidden, "encoder": 60 * hidden, "decoder": 30 * hidden, "quantizer": 10 * hidden},
        "macs": {"encode": macs, "decode": 2 * macs}, "commit": "0123456789abcdef"}
    return Architecture(**said | changes)


def timed(hidden: int, machine: Machine = HERE, batches: tuple[int, ...] = (1, 8), seconds: float = 0.5, **changes: Any) -> list[Timing]:
    return [Timing(session="2026-01-01T00:00:00Z", commit="0123456789abcdef", dirty=False, machine=machine, kind="tokenizer", name=f"net {hidden}",
                   what=what, size={"image_size": 16, "batch": b}, dtype="fp32", structure=f"s{hidden}", seconds=[b * seconds] * 3,
                   processor_seconds=[b * seconds * machine.threads] * 3, memory=b * 2**20, memory_by="resident high-water mark", **changes)
            for what in ("encode", "decode") for b in batches]


def run(hidden: int, psnr: float | None = None, **changes: Any) -> Record:
    model = bound(name="vqvae", hidden=hidden, quantizer=SMALL)
    said: dict[str, Any] = {
        "train_id": f"run{hidden}", "label": f"run {hidden}", "state": "done", "spec": {"model": json.loads(model.model_dump_json())},
        "fields": {"tokenizer.name": "vqvae", "tokenizer.hidden": hidden, "dataset.image_size": 16}, "parameters": {"total": 7},
        "values": {} if psnr is None else {f"v{hidden}": value("psnr", psnr)}}
    return Record(**said | changes)


PROFILE = Profile((architecture(8, 10**9), architecture(16, 4 * 10**9), architecture(32, 16 * 10**9)),
                  (*timed(8), *timed(16), *timed(32, THERE, batches=(1, 64))))


def test_a_run_gets_the_costs_of_its_architecture_and_keeps_its_own() -> None:
    (r,) = with_costs([run(8, cost={"train_seconds": 3.0})], PROFILE)
    assert r.cost == {"train_seconds": 3.0, "encode_macs": 1e9, "decode_macs": 2e9, "encode_images_per_second_1": 2.0,
                      "encode_images_per_second": 2.0, "decode_images_per_second_1": 2.0, "decode_images_per_second": 2.0,
                      **{f"{w}_peak_bytes{end}": 2.0**20 for w in ("encode", "decode") for end in ("", "_1")}}
    assert r.parameters == {"total": 7, "encoder": 480, "decoder": 240, "quantizer": 80}
    other = run(8, fields={"dataset.image_size": 32})
    assert with_costs([other, run(64)], PROFILE) == [other, run(64)], "another image size, and keywords that nobody profiled"


def test_a_record_of_older_code_is_the_same_architecture() -> None:
    """A keyword that came later, at its neutral value, is no other tokenizer."""
    kwargs = {"quantizer": {"kind": "quantizer", "name": "sinkhorn", "revision": 1, "kwargs": {
        "codebook_size": 16, "codebook_dim": 4, "heads": 1, "projection": True, "init": "normal", "kmeans_iterations": 10, "epsilon": 10.0,
        "iterations": 5, "cost": "standardized", "stabilizer": 1e-8, "evaluation": "nearest"}}}
    spec = ComponentSpec(kind="tokenizer", name="vqvae", revision=1, kwargs=kwargs)
    newer = ComponentSpec(kind="tokenizer", name="vqvae", revision=1, kwargs=kwargs | dict(signature("tokenizer", "vqvae").neutral))
    assert newer != spec
    assert architecture_id(spec, 16) == architecture_id(newer, 16)


def test_a_checkpoint_that_is_not_here_is_known_by_its_name() -> None:
    profile = Profile((architecture(8, 10**9, checkpoints=["mine"]),), tuple(timed(8)))
    absent = run(8, state="skipped", reason="not on this machine", spec={"model": None}, parameters={},
                 fields={"checkpoint.name": "mine", "dataset.image_size": 16})
    (r,) = with_costs([absent], profile)
    assert r.layout["bits_per_image"] == 64 and r.parameters["total"] == 800 and r.cost["decode_macs"] == 2e9
    table = build_table([r], TableSpec(name="t", rows=("checkpoint.name",), columns=(
        "cost.decode_macs", "parameters.total", "cost.encode_images_per_second", "psnr")))
    assert [c.text for c in table.rows[0].cells] == ["2.0", "800", "2.00", "–"]


COLUMNS = ("cost.encode_macs", "cost.encode_images_per_second_1", "cost.encode_images_per_second", "cost.encode_peak_bytes")


def test_no_column_mixes_machines() -> None:
    """Two of three were timed here; the third is a dash that says where it was timed, and the note names the machine."""
    records = with_costs([run(8), run(16), run(32)], PROFILE)
    table = build_table(records, TableSpec(name="t", rows=("tokenizer.hidden",), columns=COLUMNS))
    assert [[c.text for c in row.cells] for row in table.rows] == [
        ["1.0", "2.00", "2.00", "1"], ["4.0", "2.00", "2.00", "1"], ["16.0", "–", "–", "–"]]
    assert [s for _, s in table.footnotes] == ["timed on another machine only (H100, torch 2.0, fp32), so it is not shown"]
    (note,) = [n for n in table.notes if n.startswith("Times and memory: A, 2 threads on 2 cores")]
    assert "medians of 3 rounds; the large batch is 8 images; 2026-01-01, commit 0123456789ab" in note

    there = build_table(with_costs([run(8), run(16), run(32)], PROFILE, machine="h100"), TableSpec(
        name="t", rows=("tokenizer.hidden",), columns=COLUMNS))
    assert [row.cells[1].text for row in there.rows] == ["–", "–", "2.00"]
    with pytest.raises(BadInput, match="machine: 'H200' is in the name of no machine"):
        with_costs([run(8)], PROFILE, machine="H200")


def test_no_column_mixes_large_batches_or_precisions() -> None:
    profile = Profile(PROFILE.architectures, (*timed(8), *timed(16, batches=(1, 4)), *timed(32), *(
        t.model_copy(update={"dtype": "bf16"}) for t in timed(16))))
    found = with_costs([run(8), run(16), run(32)], profile)
    assert [r.cost.get("encode_images_per_second") for r in found] == [2.0, None, 2.0]
    assert {(c.dtype, c.batch) for c in conditions(profile.timings)} == {("fp32", 8), ("fp32", 4), ("bf16", 8)}


def test_a_busy_processor_is_told_at_the_rate() -> None:
    busy = [t.model_copy(update={"processor_seconds": [s * 0.9 for s in t.seconds]}) if t.what == "encode" else t for t in timed(8)]
    (r,) = with_costs([run(8)], Profile(PROFILE.architectures, tuple(busy)))
    table = build_table([r], TableSpec(name="t", rows=("tokenizer.hidden",), columns=(*COLUMNS, "cost.decode_images_per_second")))
    assert [bool(c.notes) for c in table.rows[0].cells] == [False, True, True, False, False]
    assert [s for _, s in table.footnotes] == ["a lower bound: its threads had the processor for less than 80% of the time"]


def test_of_two_sessions_the_newer_counts_whatever_its_systems_were_called() -> None:
    newer = [t.model_copy(update={"session": "2026-02-01T00:00:00Z", "name": "other"}) for t in timed(8, seconds=0.25)]
    for timings in ((*timed(8), *newer), (*newer, *timed(8))):
        (r,) = with_costs([run(8)], Profile(PROFILE.architectures, timings))
        assert r.cost["encode_images_per_second"] == 4.0


def test_a_pareto_plot_of_quality_over_macs_needs_no_more_than_its_columns(tmp_path: Path) -> None:
    """The middle one costs more than the first and is worse: it is on no front."""
    records = with_costs([run(8, 25.0), run(16, 24.0), run(32, 30.0)], PROFILE)
    figure = FigureSpec(name="psnr", kind="tradeoff", x="cost.encode_macs", y="psnr", hue="tokenizer.hidden")
    speed = FigureSpec(name="speed", kind="tradeoff", x="cost.decode_images_per_second", y="psnr")
    written = render_figures("suite", records, ReportSpec(figures=(figure, speed)), None, tmp_path)
    assert {p.name for p in written} >= {"psnr.svg", "psnr.png", "psnr.csv", "speed.csv"}
    rows = list(csv.DictReader((tmp_path / "suite" / "psnr.csv").open()))
    assert [(float(r["x"]), float(r["y"]), r["pareto"]) for r in rows] == [(1e9, 25, "yes"), (4e9, 24, "no"), (16e9, 30, "yes")]
    assert len(list(csv.DictReader((tmp_path / "suite" / "speed.csv").open()))) == 2, "the third was timed elsewhere"


def test_the_report_of_all_systems(tmp_path: Path) -> None:
    tables = cost_tables(PROFILE)
    assert [t.name for t in tables] == ["sizes", "speed-1", "speed-2"]
    assert [len(t.rows) for t in tables] == [3, 2, 1]
    assert [row.headers[1].text for row in tables[0].rows] == ["net 16", "net 32", "net 8"]
    large = Profile(tuple(a.model_copy(update={"image_size": 256}) for a in PROFILE.architectures), PROFILE.timings)
    first = {p.name: p.read_bytes() for p in render_costs(large, tmp_path)}
    assert {"table.md", "table.tex", "table-speed-1.csv", "macs.png", "throughput.svg", "memory.csv"} <= first.keys()
    assert first == {p.name: p.read_bytes() for p in render_costs(large, tmp_path)}
    assert [r["x"] for r in csv.DictReader((tmp_path / "costs" / "throughput.csv").open())] == ["2000000000.0"] * 2, "of a network one form"
    assert [r.label for r in system_records(PROFILE)] == ["net 8", "net 16", "net 32"]


def test_architectures_are_kept_once_with_all_their_names(tmp_path: Path) -> None:
    file = tmp_path / "architectures.jsonl"
    append_architectures(file, [architecture(8, 1)])
    before = file.read_bytes()
    append_architectures(file, [architecture(8, 1, commit="fedcba")])
    assert file.read_bytes() == before, "nothing new was said"
    append_architectures(file, [architecture(8, 1, names=["other"], checkpoints=["mine"])])
    (one,) = read_architectures(file)
    assert (one.names, one.checkpoints) == (["net 8", "other"], ["mine"])
    append_architectures(file, [architecture(8, 2)])
    assert read_architectures(file)[0].macs["encode"] == 2
    with file.open("a") as f:
        f.write("{}\n")
    with pytest.raises(BadInput, match=r"architectures.jsonl:4: .*no architecture"):
        read_architectures(file)


def test_a_suite_and_its_published_checkpoint_are_one_structure() -> None:
    suite = next(s for s in of_suite(ROOT / "suites" / "imagenet256_llamagen.yaml", Places.find()) if s.name != "imagenet256_llamagen: VQ-8")
    checkpoint = of_checkpoint("llamagen-vq16")
    assert structure(suite.model, 256).digest == structure(checkpoint.model, 256).digest

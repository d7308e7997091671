"""`bench profile`: sizes, records, comparisons, the oracle, and the commands at sizes that take no time. No time is asserted."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import bench.cli_profile  # noqa: F401  (adds the command)
from bench.cli import app
from bench.errors import BadInput, Incompatible
from bench.oracle import check_codes
from bench.peer import Peer
from bench.profile import Subject, peers_of, profile_quantizers, sized
from bench.stopwatch import extra_memory, machine, watch
from bench.timings import Machine, Size, Timing, append_timings, compare, newest, read_timings, sessions

CPU = torch.device("cpu")
HERE = Machine(device="cpu", processor="A", cores=2, threads=2, system="Linux-x86_64", torch="2.0")
SIZE = {"N": 64, "D": 4, "K": 16}


def timing(seconds: list[float], session: str = "2026-01-01T00:00:00Z", machine: Machine = HERE, **fields: object) -> Timing:
    given = {"kind": "quantizer", "name": "vq", "what": "search", "size": SIZE} | fields
    return Timing(session=session, commit=None, dirty=None, machine=machine, seconds=seconds, **given)


def product(seconds: list[float], session: str = "2026-01-01T00:00:00Z") -> Timing:
    return timing(seconds, session, kind="reference", name="torch.mm", what="product")


def rounds(median: float, spread: float = 0.01) -> list[float]:
    """Seven rounds around a median."""
    return [median * (1 + spread * i) for i in (-3, 2, -1, 0, 1, -2, 3)]


# -- sizes and subjects ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["65536x64x512", "65536×64×512", "65536X64x512", " 65_536x64x512 "])
def test_a_size_is_three_numbers(text: str) -> None:
    assert Size.parse(text) == Size(65536, 64, 512)
    assert str(Size.parse(text)) == "65536×64×512"


@pytest.mark.parametrize("text", ["", "64x4", "64x4x16x2", "64x0x16", "64x-4x16", "64xfourx16", "64x4.5x16", "64x4x²"])
def test_a_bad_size_is_one_sentence(text: str) -> None:
    with pytest.raises(BadInput, match=r"^--sizes .*expected N×D×K") as caught:
        Size.parse(text)
    assert "\n" not in str(caught.value)


def test_keywords_of_a_subject_are_read_as_yaml_and_checked() -> None:
    subject = Subject.parse("fsq,levels=[8,5,5]")
    assert (subject.name, subject.given, subject.form) == ("fsq", {"levels": [8, 5, 5]}, "levels=[8,5,5]")
    with pytest.raises(BadInput, match="fsq has no keyword level.*levels"):
        Subject.parse("fsq,level=[8,5,5]")


def test_sizes_reach_the_keywords_of_a_quantizer() -> None:
    size = Size(64, 4, 128)
    assert sized("quantizer", "vq", size).kwargs | {"codebook_size": 128, "codebook_dim": 4} == sized("quantizer", "vq", size).kwargs
    assert sized("quantizer", "lfq", size).kwargs["bits"] == 7
    for bits in range(1, 19):
        levels = sized("quantizer", "fsq", Size(64, 4, 2**bits)).kwargs["levels"]
        assert torch.tensor(levels).prod().item() == 2**bits
    with pytest.raises(Incompatible, match="power of two"):
        sized("quantizer", "lfq", Size(64, 4, 100))


# -- records ---------------------------------------------------------------------------------------------------------


def test_quartiles_are_those_of_the_rounds() -> None:
    t = timing([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (t.median, t.quartiles) == (3.0, (2.0, 4.0))
    assert timing([7.0]).quartiles == (7.0, 7.0)


def test_the_error_of_a_median_shrinks_with_rounds_and_is_zero_without_spread() -> None:
    assert timing([2.0] * 7).error == 0
    assert timing(rounds(1.0) * 4).error == pytest.approx(timing(rounds(1.0)).error / 2, rel=1e-9)
    torch.manual_seed(0)        # against the spread of medians of many draws
    draws = torch.randn(4000, 25, dtype=torch.float64).mul(0.02).exp()
    told = statistics.mean(timing(row.tolist()).error for row in draws[:200])
    assert told == pytest.approx(draws.median(1).values.log().std().item(), rel=0.1)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "quantizers.jsonl"
    assert read_timings(file) == []
    first = [timing(rounds(1.0), keywords={"codebook_size": 16}, beside={"naive": "VQ"}, checked=64, memory=0), product(rounds(2.0))]
    append_timings(file, first)
    second = timing([], "2026-01-02T00:00:00Z", reason="too large")
    append_timings(file, [second])
    assert read_timings(file) == [*first, second]
    assert sessions(read_timings(file)) == [first[0].session, second.session]
    assert newest(read_timings(file)) == [second, first[1]]


def test_a_line_that_is_no_timing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    append_timings(file, [timing(rounds(1.0))])
    content = json.loads(file.read_text())
    file.write_text(file.read_text() + json.dumps(content | {"seconds": "fast"}) + "\n")
    with pytest.raises(BadInput, match=r"t\.jsonl:2: seconds: .*no timing") as caught:
        read_timings(file)
    assert "\n" not in str(caught.value)


# -- comparison ------------------------------------------------------------------------------------------------------

LATER = "2026-02-01T00:00:00Z"


@pytest.mark.parametrize(("factor", "spread", "verdict"), [
    (1.5, 0.01, "slower"), (0.6, 0.01, "faster"), (1.02, 0.0, "same"), (1.02, 0.01, "same"), (1.2, 0.1, "same"), (1.0, 0.01, "same"),
    (1.05, 0.001, "slower"),
])
def test_a_change_counts_beyond_the_noise_only(factor: float, spread: float, verdict: str) -> None:
    change, = compare([timing(rounds(1.0, spread))], [timing(rounds(factor, spread), LATER)])
    assert change.verdict == verdict
    assert change.ratio == pytest.approx(factor)
    assert change.noise >= 0.03


def test_a_busier_machine_is_no_regression() -> None:
    """The reference product tells: as much slower as the case, nothing; hardly slower, the case is."""
    old = [timing(rounds(1.0)), product(rounds(2.0))]
    assert [c.verdict for c in compare(old, [timing(rounds(1.5), LATER), product(rounds(3.0), LATER)])] == ["same"]
    change, = compare(old, [timing(rounds(1.5), LATER), product(rounds(2.1), LATER)])
    assert (change.verdict, change.drift) == ("slower", pytest.approx(1.05))
    # a machine that became twice as fast does not turn a faster case into a slower one
    assert compare(old, [timing(rounds(0.8), LATER), product(rounds(1.0), LATER)])[0].verdict == "same"


def test_waiting_for_the_processor_is_no_regression_of_one_thread() -> None:
    one = HERE.model_copy(update={"threads": 1})

    def session(factor: float, share: float, when: str, machine: Machine) -> list[Timing]:
        seconds = rounds(factor)
        return [timing(seconds, when, machine, processor_seconds=[share * s for s in seconds])]

    def verdict(factor: float, share: float, machine: Machine = one) -> tuple[str, str]:
        change, = compare(session(1.0, 0.9, "2026-01-01T00:00:00Z", machine), session(factor, share, LATER, machine))
        return change.verdict, change.note

    assert verdict(2.0, 0.45) == ("same", "had the processor 90% of the time, now 45%")
    assert verdict(2.0, 0.9) == ("slower", "")
    assert verdict(2.0, 0.45, HERE) == ("slower", "had the processor 90% of the time, now 45%")     # or a thread is gone
    assert verdict(0.5, 0.95) == ("faster", "")
    assert verdict(1.2, 0.6)[0] == "same"                           # slower by the clock, faster by the processor


def test_times_of_another_machine_are_not_compared() -> None:
    there = HERE.model_copy(update={"threads": 4})
    assert there.fingerprint != HERE.fingerprint
    change, = compare([timing(rounds(1.0), machine=there)], [timing(rounds(9.0), LATER)])
    assert (change.verdict, change.ratio, change.note) == ("other machine", None, "threads 4 there, 2 here")


def test_new_gone_and_unmeasured_cases_are_named() -> None:
    old = [timing(rounds(1.0), name="a"), timing(rounds(1.0), name="b")]
    new = [timing([], LATER, name="b", reason="out of memory"), timing(rounds(1.0), LATER, name="c")]
    assert {c.case.name: c.verdict for c in compare(old, new)} == {"a": "gone", "b": "unmeasured", "c": "new"}


def test_a_comparison_says_when_codes_became_wrong() -> None:
    change, = compare([timing(rounds(1.0), checked=64)], [timing(rounds(1.0), LATER, checked=64, wrong=3)])
    assert "3 wrong codes, before 0" in change.note


# -- the oracle ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["l2", "cosine", "dot"])
def test_the_oracle_passes_right_codes_and_counts_each_wrong_one(by: str) -> None:
    torch.manual_seed(1)
    z, e = torch.randn(500, 6), torch.randn(40, 6) * torch.rand(40, 1).add(0.2)
    score = {"l2": -torch.cdist(z.double(), e.double()), "dot": z.double() @ e.double().T,
             "cosine": z.double() @ torch.nn.functional.normalize(e.double(), dim=1).T}[by]
    codes = score.argmax(1)
    right = check_codes(z, e, codes, by)
    assert (right.checked, right.differing, right.wrong) == (500, 0, 0)
    codes[[0, 17, 499]] = score[[0, 17, 499]].argmin(1)
    codes[30] = 40              # no such code
    assert (check_codes(z, e, codes, by).differing, check_codes(z, e, codes, by).wrong) == (4, 4)


def test_rounding_is_no_error_but_a_neighbour_is() -> None:
    e = torch.tensor([[0.0], [1.0], [1.0 + 2**-20]])
    z = torch.tensor([[1.0 + 2**-21], [1.0]])                       # between two codes that fp32 cannot tell apart
    assert check_codes(z, e, torch.tensor([2, 2])).wrong == 0
    assert check_codes(z, e, torch.tensor([0, 1])).wrong == 1


def test_the_ends_of_a_large_batch_are_looked_at() -> None:
    z, e = torch.randn(5000, 2), torch.randn(8, 2)
    codes = torch.cdist(z.double(), e.double()).argmin(1)
    codes[0], codes[-1] = (codes[0] + 1) % 8, (codes[-1] + 1) % 8
    check = check_codes(z, e, codes)
    assert (check.checked, check.wrong) == (2048, 2)


# -- the stopwatch ---------------------------------------------------------------------------------------------------


def test_cases_take_turns_and_a_failing_one_is_left_out() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        if name == "c":
            raise ValueError("no such size\nmore")

    found = watch({name: (lambda name=name: (call(name), torch.randn(1500, 1500) @ torch.randn(1500, 1500))) for name in "abc"}, 4, CPU)
    assert found["c"].failure == "no such size" and not found["c"].seconds
    assert [len(found[name].seconds) for name in "ab"] == [4, 4]
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]        # repeats of a round as one
    assert "".join(turns) == "abc" + "ababa"        # rounds ab, ba, ab, ba
    assert order.count("c") == 1


def test_a_short_call_that_waited_once_is_still_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import stopwatch

    taken = iter([1e-4, 1e-4, 0.02, 1e-4])              # the last of the warm-ups waited
    monkeypatch.setattr(stopwatch, "_timed", lambda call, repeats, device: (next(taken), 0.0))
    assert watch({"a": lambda: None}, 1, CPU)["a"].repeats == 20


def test_memory_is_seen_whoever_allocates() -> None:
    need, how = extra_memory(lambda: torch.ones(8 * 2**20).sum(), CPU)
    if need is None:
        pytest.skip(how)
    assert 31 * 2**20 < need < 40 * 2**20


# -- quantizers beside peers -----------------------------------------------------------------------------------------


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.peers.faiss import Faiss

    monkeypatch.setattr(Faiss, "module", "no_such_package_anywhere")
    with pytest.raises(BadInput, match="^--against faiss: the package is not installed; pip install faiss-cpu$"):
        peers_of(["faiss"])
    with pytest.raises(BadInput, match="scann") as caught:
        peers_of(["scann"])
    assert "\n" not in str(caught.value)
    assert isinstance(peers_of(["naive"])["naive"], Peer)


def test_no_quantizer_has_wrong_codes_by_its_own_rule() -> None:
    """Every registered quantizer that has this size: its codes are those of a float64 search, or say why not."""
    from bench.registry import available

    seen: dict[str, Timing] = {}
    for t in profile_quantizers([Subject.parse(n) for n in available("quantizer")], [Size(64, 8, 16)], what=("search", "train"), rounds=1):
        if t.kind != "quantizer":
            continue
        assert t.seconds or t.reason, t.case
        assert t.wrong == 0, t.case
        if t.what == "search":
            seen[t.name] = t
            assert t.checked or t.unchecked or t.reason, t.case
    assert seen["vq"].checked == seen["ema_vq"].checked == seen["codebook_vq"].checked == seen["ibq"].checked == 64
    assert not seen["vq"].reason and seen["fsq"].unchecked == "no table" and seen["gaussian_kl"].unchecked == "no codes"


def test_a_quantizer_with_a_wrong_search_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import implementations.quantizers.vq as vq

    right = vq.nearest_codes
    monkeypatch.setattr(vq, "nearest_codes", lambda z, e: torch.where(torch.arange(len(z)) == 5, (right(z, e) + 1) % len(e), right(z, e)))
    found, = (t for t in profile_quantizers([Subject.parse("vq")], [Size(64, 4, 16)], what=("search",), rounds=1) if t.name == "vq")
    assert (found.checked, found.wrong) == (64, 1)


# -- the commands ----------------------------------------------------------------------------------------------------


def profile(folder: Path, *words: str) -> Result:
    options = [] if words[0] == "--compare" else ["--reports", str(folder / "reports")]
    return CliRunner().invoke(app, ["profile", *words, "--results", str(folder / "results"), *options])


def test_bench_profile_quantizers(tmp_path: Path) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    pytest.importorskip("faiss")
    tiny = ("quantizers", "vq", "codebook_vq", "fsq", "--sizes", "64x4x16", "--rounds", "3")
    result = profile(tmp_path, *tiny, "--against", "naive,vector-quantize-pytorch,faiss")
    assert result.exit_code == 0, result.output
    stored = read_timings(tmp_path / "results" / "profile" / "quantizers.jsonl")
    ours = {(t.name, t.what): t for t in stored if t.kind == "quantizer"}
    assert set(ours) == {(n, w) for n in ("vq", "codebook_vq", "fsq") for w in ("search", "train")}
    assert all(len(t.seconds) == 3 and min(t.seconds) > 0 and not t.reason for t in stored), [t.reason for t in stored]
    assert ours["vq", "search"].beside == {"naive": "VQ", "vector_quantize_pytorch": "learned codes", "faiss": "flat"}
    assert {t.name for t in stored if t.kind == "peer"} == {"naive", "vector_quantize_pytorch", "faiss"}
    for t in stored:
        assert t.wrong == t.differing == 0
        if t.what == "search" and t.name in ("vq", "codebook_vq", "faiss", "naive"):
            assert t.checked == 64
    markdown = (tmp_path / "reports" / "profile" / "quantizers.md").read_text()
    assert "64×4×16" in markdown and "faiss" in markdown and "codebook" in markdown

    assert "sessions" in str(profile(tmp_path, *tiny, "--compare", "1999").exception)
    file = tmp_path / "old.jsonl"
    slow = [t.model_copy(update={key: [s * 1e-3 for s in getattr(t, key)] for key in ("seconds", "processor_seconds")})
            if t.name == "vq" else t for t in stored]
    file.write_text("")
    append_timings(file, slow)
    compared = profile(tmp_path, "--compare", str(file), "--json")
    assert compared.exit_code == 1
    assert {c["verdict"] for c in json.loads(compared.stdout) if '"vq"' in c["case"]} == {"slower"}
    assert {c["verdict"] for c in json.loads(compared.stdout) if '"vq"' not in c["case"]} == {"same"}


def test_bench_profile_tokenizers(tmp_path: Path) -> None:
    result = profile(tmp_path, "tokenizers", "vqvae", "--image-size", "16", "--batch", "2", "--rounds", "2", "--threads", "1",
                     "--what", "encode,decode,train")
    assert result.exit_code == 0, result.output
    stored = read_timings(tmp_path / "results" / "profile" / "tokenizers.jsonl")
    assert [t.what for t in stored] == ["encode", "decode", "train"]
    for t in stored:
        assert t.size == {"image_size": 16, "batch": 2} and len(t.seconds) == 2 and not t.reason
        assert t.machine.threads == 1 and t.parameters > 0 and t.macs > 0
        assert t.structure == stored[0].structure
    assert stored[2].macs == stored[0].macs + stored[1].macs
    assert "vqvae" in (tmp_path / "reports" / "profile" / "tokenizers.md").read_text()
    assert "encode GMACs" in (tmp_path / "reports" / "costs" / "table.md").read_text()


def test_parameters_and_macs_need_no_timing(tmp_path: Path) -> None:
    result = profile(tmp_path, "tokenizers", "vqvae", "--image-size", "16", "--what", "")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "results" / "profile" / "tokenizers.jsonl").exists()
    assert "encode GMACs" in (tmp_path / "reports" / "costs" / "table.md").read_text()


@pytest.mark.parametrize(("words", "sentence"), [
    (("quantizers", "vq", "--sizes", "64x4"), "--sizes 64x4: expected"),
    (("quantizers", "vqq", "--sizes", "64x4x16"), "vqq"),
    (("quantizers", "vq", "--what", "serch"), "--what serch: expected search"),
    (("quantizers", "vq", "--dtype", "int8"), "--dtype int8: expected"),
    (("quantizers", "vq", "--sizes", "64x4x16", "--against", "faisss"), "faisss"),
    (("tokenizers", "vqvae", "--batch", "1,0"), "--batch 0: expected numbers of images"),
    (("tokenizers", "vqvae", "--precision", "fp16"), "--precision fp16: expected fp32 or bf16"),
    (("tokenizers", "imagenet256_var", "--image-size", "64"), "--image-size 64: imagenet256_var has its own"),
    (("--compare", "previous"), "there are no timings yet"),
])
def test_bad_input_is_one_sentence(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    error = profile(tmp_path, *words).exception
    assert isinstance(error, BadInput) and sentence in str(error) and "\n" not in str(error), repr(error)


def test_the_machine_is_that_of_the_moment() -> None:
    assert machine(CPU).threads == torch.get_num_threads()
    assert machine(CPU) == machine(CPU)

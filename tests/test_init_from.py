"""Runs that begin with other weights: which tensors they take, what stays still, who waits for whom, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import Bench, suite
from tiny import batches, new_state, train_spec

from bench import init_from
from bench.errors import BadInput
from bench.jobs import packed
from bench.places import Places
from bench.preflight import preflight
from bench.run import Start
from bench.spec import InitFrom
from bench.suite import Suite
from bench.train import train

EMA = {"name": "ema_vq", "codebook_size": 16, "codebook_dim": 4}


def model(seed: int = 0, **changes: Any) -> torch.nn.Module:
    return new_state(train_spec(seed=seed, **changes)).model


# -- which tensors -----------------------------------------------------------------------------------------------------


def test_what_fits_by_name_and_shape_is_taken_and_the_rest_is_told() -> None:
    giver, taker = model(0).state_dict(), model(1)
    before = {k: v.clone() for k, v in taker.state_dict().items() if isinstance(v, torch.Tensor)}
    first, second, *rest = [k for k in giver if k.startswith("encoder.") and giver[k].dim() > 1]
    given = dict(giver) | {first: torch.zeros(3, 3), "elsewhere": torch.zeros(1)}
    taken, fresh, left = init_from.take(taker, given)
    after = taker.state_dict()
    assert torch.equal(after[second], giver[second]) and torch.equal(after[first], before[first])
    assert first not in taken and fresh == [first] and set(left) == {first, "elsewhere"} and len(rest) > 0


def test_names_are_exchanged_by_their_longest_beginning() -> None:
    given = {"encoder.a": 1, "encoder.mid.b": 2, "quantizer": 3}
    assert init_from.renamed(given, {"encoder.": "e.", "encoder.mid.": "m.", "quantizer": "table"}) == {
        "e.a": 1, "m.b": 2, "table": 3}


@pytest.mark.parametrize("name", ["vq", "ema_vq"])
@pytest.mark.parametrize("came", [True, False])
def test_a_table_that_came_is_not_drawn_again(name: str, came: bool) -> None:
    """`init: samples` draws the codes from the first latents, unless they are there: also where the file says nothing of
    that, being somebody else's."""
    spec = train_spec({"name": name, "codebook_size": 16, "codebook_dim": 4, "init": "samples"})
    giver, taker = new_state(spec.model_copy(update={"seed": 9})), new_state(spec)
    with torch.no_grad():
        giver.model.quantizer.codebooks()[0].fill_(7.0)
    tensors = {k: v for k, v in giver.model.state_dict().items() if isinstance(v, torch.Tensor)}
    if came:
        init_from.take(taker.model, tensors)
    taker.model.train()
    taker.model(batches(spec)(0, 0).images)
    assert bool((taker.model.quantizer.codebooks()[0] == 7).all()) == came


@pytest.mark.parametrize("weights", ["live", "average"])
def test_a_checkpoint_is_opened_with_the_weights_that_were_asked_for(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(init_from, "digest", lambda given, format, places: "0123456789ab")
    monkeypatch.setattr(init_from, "locate", lambda given, places: given)

    def opened(found: str, places: Places, *, format: str | None, weights: str) -> SimpleNamespace:
        asked.append(weights)
        return SimpleNamespace(tokenizer=model())

    monkeypatch.setattr(init_from, "open_checkpoint", opened)
    begun = train_spec().model_copy(update={"init_from": InitFrom(sha256="0123456789ab", weights=weights)})
    run = SimpleNamespace(train=begun, start=Start(label="x", checkpoint="x"), label="y")
    assert init_from.begin(model(1), run, Places.find())["weights"] == weights and asked == [weights]


# -- what does not learn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", [None, EMA], ids=["gradient", "moving average"])
def test_what_is_frozen_stays_bit_equal_and_the_rest_learns(quantizer: dict[str, Any] | None) -> None:
    spec = train_spec(quantizer, freeze=("encoder", "quantizer"), average=0.9)
    state = new_state(spec)
    before = {k: v.clone() for k, v in state.model.state_dict().items() if isinstance(v, torch.Tensor)}
    train(state, batches(spec), spec, lambda state: state.step >= 4)
    for name, value in before.items():
        same = torch.equal(state.model.state_dict()[name], value)
        assert same == name.startswith(("encoder", "quantizer")), name
    free = new_state(train_spec(quantizer))
    train(free, batches(spec), train_spec(quantizer), lambda state: state.step >= 4)
    assert not torch.equal(free.model.quantizer.codebooks()[0], state.model.quantizer.codebooks()[0])   # it would have moved


def test_frozen_modules_stay_in_eval_mode() -> None:
    frozen = model()
    init_from.freeze(frozen, ["quantizer", "encoder."])
    frozen.train()
    assert not frozen.quantizer.training and not frozen.encoder.training
    assert all(not m.training for m in frozen.encoder.modules()) and frozen.training
    frozen.eval()
    assert not frozen.training


@pytest.mark.parametrize(("prefixes", "sentence"), [
    (["encodr"], "train.freeze = encodr: no part of this tokenizer has a name that begins so; did you mean encoder"),
    ([""], "leaves nothing of this tokenizer that learns"),
])
def test_a_frozen_part_has_to_exist_and_something_has_to_learn(prefixes: list[str], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        init_from.freeze(model(), prefixes)


# -- who begins from whom ------------------------------------------------------------------------------------------------


def staged(**changes: Any) -> dict:
    """Two stages, the second written first."""
    return suite(seeds=[0, 1], include=[
        {"label": "two", "train.init_from": {"run": "one"}, "train.freeze": ["encoder", "quantizer"], "train.steps": 4},
        {"label": "one", "train.steps": 3},
    ], **changes) | {"axes": {"train.steps": [2]}}


def expanded(content: dict, tmp_path: Path) -> list:
    path = tmp_path / "six.yaml"
    path.write_text(json.dumps(content))
    return Suite.load(path).expand(Places.find())


def test_each_seed_begins_from_the_run_of_its_own_seed_which_comes_first(tmp_path: Path) -> None:
    runs = expanded(staged(), tmp_path)
    by = {(run.label, run.train.seed): run for run in runs}
    for seed in (0, 1):
        assert by["two", seed].parent == by["one", seed].train_id
        assert runs.index(by["one", seed]) < runs.index(by["two", seed])
        assert by["two", seed].fields["train.init_from"] == "one" and "train.init_from" not in by["one", seed].fields
    longer = staged()
    longer["include"][1]["train.steps"] = 5
    assert {r.train_id for r in expanded(longer, tmp_path) if r.label == "two"}.isdisjoint(
        r.train_id for r in runs)                       # other weights to begin with: another run


def test_a_run_comes_in_a_later_job_than_the_one_it_begins_from(tmp_path: Path) -> None:
    jobs = packed([(run.train_id, run) for run in expanded(staged(resources={"gpus": 0, "cpus": 1, "hours": 1, "pack": 8}), tmp_path)])
    assert [len(job.labels) for job in jobs] == [4, 2] and set(jobs[1].labels) == {"two"}
    assert jobs[0].after == () and set(jobs[1].after) <= set(jobs[0].train_ids) and len(jobs[1].after) == 2


WRONG = {
    "nobody": ({"run": "ones"}, 'train.init_from.run = "ones": no run of this suite is called so; did you mean one?'),
    "itself": ({"run": "two"}, "these runs begin from each other"),
    "both": ({"run": "one", "checkpoint": "x.pt"}, "name the run of this suite (run: its label) or the checkpoint to begin "
             "from; one of them"),
    "no file": ({"checkpoint": "no/such.pt", "format": "taming"}, "no/such.pt: there is no such file"),
    "whose": ({"checkpoint": "six.yaml"}, "whose checkpoint is it?"),
    "not averaged": ({"run": "one", "weights": "average"}, "one has no averaged weights; set train.average in it"),
    "another": ({"checkpoint": "six.yaml", "format": "taming", "sha256": "0123456789ab"}, "six.yaml is another file: its sha256"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_begun_with_is_one_sentence(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, sentence = WRONG[case]
    content = staged()
    content["include"][0]["train.init_from"] = given
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BadInput) as said:
        expanded(content, tmp_path)
    assert sentence in str(said.value) and "six.yaml" in str(said.value)
    assert len(str(said.value).splitlines()) <= 2       # once a seed at most


@pytest.mark.parametrize("known", [None, "0123456789ab"])
def test_a_listed_checkpoint_that_is_not_here_can_be_planned_with_and_not_begun(
    known: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BENCH_WEIGHTS", raising=False)
    content = staged()
    content["include"][0]["train.init_from"] = {"checkpoint": "taming-f16-1024"} | ({"sha256": known} if known else {})
    runs = [run for run in expanded(content, tmp_path) if run.label == "two"]
    assert {run.train.init_from.sha256 for run in runs} == {known or "unknown"}
    with pytest.raises(BadInput, match="two begins with other weights .train.init_from.: the weights of taming-f16-1024 are not on this"):
        preflight(runs, Places.find())


# -- from end to end -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path, tmp_path_factory.getbasetemp() / "init_from_cache", {"CUDA_VISIBLE_DEVICES": ""}, stub=False)


def saved(bench: Bench, train_id: str) -> dict[str, Any]:
    file = bench.folder / "runs" / train_id / "checkpoints" / "final.pt"
    return torch.load(file, map_location="cpu", weights_only=True)["train"]["model"]


def record(bench: Bench, train_id: str) -> dict[str, Any]:
    return json.loads((bench.folder / "runs" / train_id / "record.json").read_text())


def test_two_stages_in_one_command_and_by_a_checkpoint(bench: Bench) -> None:
    content = staged() | {"seeds": [0]}
    path = bench.write(content)
    bench("run", str(path), "--launcher", "debug", seconds=300)
    ids = {label: row["train_id"] for label, row in bench.status(path).items()}
    one, two = saved(bench, ids["one"]), saved(bench, ids["two"])
    for name, value in one.items():
        if isinstance(value, torch.Tensor) and name.startswith(("encoder", "quantizer")):
            assert torch.equal(two[name], value), name
    assert any(not torch.equal(two[n], one[n]) for n in one if n.startswith("decoder"))
    told = record(bench, ids["two"])
    said = told["provenance"]["init_from"]
    assert said["run"] == ids["one"] and said["drawn"] == 0 and said["tensors"] == sum(
        isinstance(v, torch.Tensor) for v in one.values())
    assert told["parameters"]["total"] == record(bench, ids["one"])["parameters"]["total"] > told["parameters"]["learned"]

    # the same weights by their file come to the same end, as another run
    content["include"][0]["train.init_from"] = {"checkpoint": str(bench.folder / "runs" / ids["one"])}
    path = bench.write(content | {"name": "other"}, "other")
    bench("run", str(path), "--launcher", "debug", seconds=300)
    three = bench.status(path)["two"]["train_id"]
    assert three != ids["two"] and all(torch.equal(v, two[n]) for n, v in saved(bench, three).items() if isinstance(v, torch.Tensor))
    assert record(bench, three)["provenance"]["init_from"]["sha256"]


def test_a_run_whose_forerunner_has_not_ended_says_so_and_the_same_command_continues(bench: Bench) -> None:
    path = bench.write(staged() | {"seeds": [0]})
    said = bench("run", str(path), "--launcher", "debug", "--only", "two", code=1, seconds=300)
    assert "begins with the weights of one" in said and "which has not ended; run it first" in said
    bench("run", str(path), "--launcher", "debug", seconds=300)
    assert set(bench.states(path).values()) == {"done"}
    ids = {label: row["train_id"] for label, row in bench.status(path).items()}
    shutil.rmtree(bench.folder / "runs" / ids["one"] / "checkpoints")
    bench("eval", str(path), "measure.values=[ssim]", seconds=300)         # measured again without the forerunner's weights


def test_local_jobs_wait_for_the_run_they_begin_from(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    bench = Bench(tmp_path, tmp_path_factory.getbasetemp() / "init_from_cache", {"CUDA_VISIBLE_DEVICES": ""})
    path = bench.write(staged() | {"seeds": [0]})
    bench("run", str(path), "--launcher", "local", "-j", "3", do={"*": "steps:20"})
    ids = {label: row["train_id"] for label, row in bench.status(path).items()}
    folders = {label: bench.folder / "runs" / i for label, i in ids.items()}
    began = {label: json.loads((f / "environment.json").read_text())["started"] for label, f in folders.items()}
    ended = {label: float((f / "ended").read_text()) for label, f in folders.items()}
    assert began["two"] > ended["one"]
    other = next(label for label in ids if label not in ("one", "two"))
    assert began[other] < ended["one"]                  # three at a time: who begins from nobody does not wait

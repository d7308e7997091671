"""Identities: golden ids of every shipped run, and what moves an id and what does not.

    python tests/test_identity.py --write      after a change that is meant to retrain or remeasure; say why
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import fail, train_spec

from bench.places import Places
from bench.registry import signature
from bench.run import Run
from bench.spec import HARNESS_REVISION, ComponentSpec, InitFrom, OptimizerSpec, TrainSpec, ValueSpec, bind, identity
from bench.suite import Suite

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).with_name("golden_ids.json")
SUITES = sorted(p for p in (ROOT / "suites").glob("*.yaml") if "task: points" not in p.read_text())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A machine without data and weights: everything counts as official."""
    return bare_machine(tmp_path_factory.mktemp("bare"))


def bare_machine(folder: Path) -> Places:
    return Places(results=folder / "results", reports=folder / "reports", runs=folder / "runs",
                  cache=folder / "cache", data=folder / "data", weights=None)


def ids(suite: Path, places: Places) -> dict[str, dict[str, Any]]:
    runs = Suite.load(suite).expand(places)
    return {r.label: {"train": r.train_id, "values": {w.name: w.value_id for w in r.values}} for r in runs}


@pytest.fixture(autouse=True)
def no_weights_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


# -- golden ids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES, ids=lambda p: p.stem)
def test_ids_of_the_shipped_runs_are_the_golden_ones(suite: Path, bare: Places) -> None:
    golden = json.loads(GOLDEN.read_text())
    how = "python tests/test_identity.py --write, and say why in the commit"
    assert ids(suite, bare) == golden[suite.stem], how


def test_the_golden_ids_are_of_the_suites_that_ship() -> None:
    assert sorted(json.loads(GOLDEN.read_text())) == [p.stem for p in SUITES]


def test_runs_that_suites_share_have_one_id(bare: Places) -> None:
    by_id: dict[str, set[str]] = {}
    for suite in SUITES:
        for run in Suite.load(suite).expand(bare):
            by_id.setdefault(run.train_id, set()).add(run.train.model_dump_json())
    assert all(len(specs) == 1 for specs in by_id.values())
    golden = json.loads(GOLDEN.read_text())
    table = {r["train"] for r in golden["celeba_readme_table"].values()}
    sizes = {r["train"] for r in golden["celeba_codebook_size"].values()}
    assert len(table & sizes) == 3                  # 64 / 512, 1024, 2048 of both suites


# -- what does not move an id ------------------------------------------------------------------------------


SUITE: dict[str, Any] = {
    "name": "small", "question": "Which id?",
    "base": {
        "dataset": {"name": "photos", "image_size": 16, "train_images": 64, "test_images": 32},
        "tokenizer": {"name": "vqvae", "hidden": 8,
                      "quantizer": {"name": "ema_vq", "codebook_size": 16, "codebook_dim": 4, "decay": 0.5}},
        "objective": {"name": "reconstruction", "weights": {"pixel": 1.0, "commitment": 0.25}},
        "optimizers": {"tokenizer": {"name": "adam", "lr": 0.0004, "betas": [0.9, 0.99]}},
        "train": {"steps": 10, "batch_size": 8, "flip": True},
        "measure": {"values": ["psnr", "usage"]},
    },
    "seeds": [3],
}


def one_run(content: Any, folder: Path, places: Places, *, sort_keys: bool = False) -> Run:
    file = folder / "suite.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=sort_keys))
    run, = Suite.load(file).expand(places)
    return run


def shuffled(value: Any, draw: st.DrawFn) -> Any:
    if isinstance(value, dict):
        return {k: shuffled(value[k], draw) for k in draw(st.permutations(sorted(value)))}
    return value


def reference(places: Places) -> tuple[str, list[str]]:
    run = one_run(SUITE, places.cache.parent, places)
    return run.train_id, [w.value_id for w in run.values]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_key_order_does_not_matter(data: st.DataObject, bare: Places) -> None:
    run = one_run(shuffled(SUITE, data.draw), bare.cache.parent, bare)
    assert (run.train_id, [w.value_id for w in run.values]) == reference(bare)


FORMATTED = """
name: small   # a comment
question: "Which id?"
base:
    dataset:
        name: photos
        image_size: 16
        train_images: 64
        test_images: 32
    tokenizer: {hidden: 8, name: "vqvae", quantizer: {
        name: ema_vq, codebook_size: 16, codebook_dim: 4, decay: 5e-1}}
    objective: {name: reconstruction, weights: {pixel: 1, commitment: 25e-2}}
    optimizers: {tokenizer: {lr: 4e-4, betas: [0.9, 0.99]}}
    train:
        flip: true
        batch_size: 8
        steps: 10
    measure:
        values:
            - psnr
            - usage
seeds:
    - 3
"""


def test_formatting_and_defaults_that_are_written_out_do_not_matter(bare: Places, tmp_path: Path) -> None:
    assert one_run(FORMATTED, tmp_path, bare).train_id == reference(bare)[0]
    written = FORMATTED.replace("hidden: 8,", "hidden: 8, resblocks: 2, rectified_skip: true,")
    assert written != FORMATTED and one_run(written, tmp_path, bare).train_id == reference(bare)[0]


@pytest.mark.parametrize("change", [
    {"resources": {"gpus": 1, "cpus": 4, "hours": 2}},
    {"report": {"tables": [{"name": "a", "rows": ["tokenizer"], "columns": ["psnr"]}]}},
    {"question": "Another one?"},
    {"base.monitors": ["codebook_usage"]},
    *({f"base.train.{key}": value} for key, value in {
        "log_every": 1, "watch_every": 3, "eval_every": 4, "eval_images": 5, "checkpoint_every": 6,
        "checkpoint_seconds": 7.0, "compile": False, "channels_last": False, "fused": False, "tf32": True,
        "workers": 0, "data_on_device": False, "cache_gib": 1.0}.items()),
    {"base.train.seed": 3},
    {"base.optimizers.tokenizer.lr_per_image": 0.00005, "base.optimizers.tokenizer.lr": None},
    {"base.train.epochs": 1.25, "base.train.steps": None},
], ids=lambda change: ",".join(change))
def test_how_a_run_is_carried_out_does_not_matter(
    change: dict[str, Any], bare: Places, tmp_path: Path,
) -> None:
    content = json.loads(json.dumps(SUITE))
    for key, value in change.items():
        *path, last = key.split(".")
        here = content
        for part in path:
            here = here[part]
        if value is None:
            del here[last]
        else:
            here[last] = value
    run = one_run(content, tmp_path, bare)
    assert (run.train_id, [w.value_id for w in run.values]) == reference(bare)


def test_every_loop_setting_is_named_above() -> None:
    from bench.spec import LoopSettings

    tested = {key.rpartition(".")[2] for change in
              test_how_a_run_is_carried_out_does_not_matter.pytestmark[0].args[1] for key in change}
    assert set(LoopSettings.model_fields) <= tested


def test_a_run_keeps_its_ids_on_its_way_through_json(bare: Places, tmp_path: Path) -> None:
    for suite in SUITES:
        for run in Suite.load(suite).expand(bare):
            again = Run.model_validate_json(run.model_dump_json())
            assert again == run and again.train_id == run.train_id
            assert [w.value_id for w in again.values] == [w.value_id for w in run.values]
            assert TrainSpec.model_validate_json(run.train.model_dump_json()).train_id == run.train_id


def test_a_neutral_keyword_counts_only_at_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    sig = signature("quantizer", "vq")
    before = bind("quantizer", "vq", ("q",), fail)
    rest = {k: v for k, v in before.kwargs.items() if k != "entropy"}
    without = ComponentSpec(**{**dict(before), "kwargs": rest})
    assert identity(before) != identity(without)
    monkeypatch.setitem(sig.attributes, "neutral", {"entropy": False})
    assert identity(before) == identity(without)
    assert identity(bind("quantizer", {"name": "vq", "entropy": True}, ("q",), fail)) != identity(without)


# -- what moves an id --------------------------------------------------------------------------------------


OTHER: dict[str, Any] = {
    "dataset": bind("dataset", {"name": "photos", "image_size": 32}, ("d",), fail), "data": "0123456789ab",
    "model": bind("tokenizer", {"name": "vqvae", "hidden": 16, "quantizer": "vq"}, ("t",), fail),
    "objective": bind("objective", {"name": "reconstruction", "weights": {"pixel": 2.0}}, ("o",), fail),
    "optimizers": {"tokenizer": OptimizerSpec(lr=2e-3)}, "steps": 13, "batch_size": 16, "accumulation": 2,
    "flip": True, "precision": "bf16", "average": 0.99, "seed": 4,
    "debug": True, "harness": HARNESS_REVISION + 1, "networks": {"lpips_vgg": "397923af"},
    "init_from": InitFrom(run="0123456789ab"), "freeze": ("encoder",), "average_ramp": "ratio",
}
OTHER_OPTIMIZER: dict[str, Any] = {
    "name": "adamw", "lr": 2e-3, "betas": (0.5, 0.999), "eps": 1e-6, "weight_decay": 0.1, "clip_norm": 1.0,
    "warmup_steps": 5, "schedule": "cosine", "final_lr": 1e-5, "lr_scale": {"quantizer": 0.5},
    "clip_value": 1.0, "schedule_start": 3,
}


@pytest.mark.parametrize("field", TrainSpec.model_fields)
def test_every_field_of_the_training_moves_its_id(field: str) -> None:
    spec = train_spec()
    assert spec.model_copy(update={field: OTHER[field]}).train_id != spec.train_id


@pytest.mark.parametrize("change", [{"run": "ba9876543210"}, {"sha256": "0123456789ab"}, {"names": {"a": "b"}}, {"weights": "average"}])
def test_every_field_of_what_a_run_begins_with_moves_its_id(change: dict[str, Any]) -> None:
    one = InitFrom(run="0123456789ab")
    assert (train_spec().model_copy(update={"init_from": one.model_copy(update=change)}).train_id
            != train_spec().model_copy(update={"init_from": one}).train_id)
    assert change.keys() <= InitFrom.model_fields.keys()


@pytest.mark.parametrize("field", OptimizerSpec.model_fields)
def test_every_field_of_an_optimizer_moves_the_id(field: str) -> None:
    spec = train_spec()
    changed = spec.optimizers["tokenizer"].model_copy(update={field: OTHER_OPTIMIZER[field]})
    assert spec.model_copy(update={"optimizers": {"tokenizer": changed}}).train_id != spec.train_id


COMPONENTS = [("tokenizer", "vqvae"), ("quantizer", "vq"), ("quantizer", "ema_vq"), ("dataset", "photos")]


def changed(value: Any, annotation: str) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 4
    if isinstance(value, float):
        return value / 2
    if isinstance(value, str):
        return next(w for w in annotation.removeprefix("Literal[").rstrip("]").replace("'", "").split(", ")
                    if w != value)
    return 7


@pytest.mark.parametrize("kind, name", COMPONENTS)
def test_every_keyword_and_the_revision_of_a_component_move_the_id(kind: str, name: str) -> None:
    given = {"name": name} | ({"quantizer": "vq"} if kind == "tokenizer" else {})
    whole = bind(kind, given, (kind,), fail)
    moved = {identity(whole)}
    keywords = signature(kind, name).keywords
    for key, keyword in keywords.items():
        other = "ema_vq" if key == "quantizer" else changed(whole.kwargs[key], keyword.text)
        moved.add(identity(bind(kind, given | {key: other}, (kind,), fail)))
    moved.add(identity(whole.model_copy(update={"revision": 2})))
    assert len(moved) == len(keywords) + 2


def test_every_field_of_a_measurement_moves_its_id() -> None:
    value = ValueSpec(train_id="a" * 12, data="official", prepare={"round": "8bit"},
                      metric=bind("metric", "psnr", ("m",), fail))
    other = {"train_id": "b" * 12, "weights": "average", "split": "train", "data": "0" * 12, "images": 5,
             "prepare": {"round": "none"}, "metric": bind("metric", "ssim", ("m",), fail),
             "networks": {"inception": "0" * 12}}
    assert other.keys() == ValueSpec.model_fields.keys()
    found = {value.model_copy(update={field: other[field]}).value_id for field in other}
    assert len(found | {value.value_id}) == len(other) + 1


def test_measuring_more_trains_nothing(bare: Places, tmp_path: Path) -> None:
    more = json.loads(json.dumps(SUITE))
    more["base"]["measure"] = {"values": ["ssim", "psnr", "usage", "lpips"]}
    run = one_run(more, tmp_path, bare)
    train_id, values = reference(bare)
    assert run.train_id == train_id and set(values) < {w.value_id for w in run.values}


def test_the_order_of_a_lists_items_counts(bare: Places, tmp_path: Path) -> None:
    other = json.loads(json.dumps(SUITE))
    other["base"]["optimizers"]["tokenizer"]["betas"] = [0.99, 0.9]
    assert one_run(other, tmp_path, bare).train_id != reference(bare)[0]


if __name__ == "__main__":
    import os
    import tempfile

    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCH_HOME"] = folder
        written = {suite.stem: ids(suite, bare_machine(Path(folder))) for suite in SUITES}
    GOLDEN.write_text(json.dumps(written, indent=1) + "\n")

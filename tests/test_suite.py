"""Suites: what is written in YAML and on the command line, which runs come out, what is said when wrong."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import fail

from bench.build import check_runs
from bench.errors import BadInput
from bench.places import Places
from bench.protocol import load_protocol, protocols
from bench.registry import HOMES, REQUIRED, Part, available, resolve, signature, source_file
from bench.resources import Resources
from bench.run import Run
from bench.spec import ComponentSpec, bind, bind_value
from bench.suite import Suite
from bench.yaml_lines import load_yaml, scalar

ROOT = Path(__file__).resolve().parents[1]
BASE = """\
name: small
question: What comes out?
base:
  dataset: {name: photos, image_size: 16, train_images: 64, test_images: 32}
  tokenizer:
    name: vqvae
    hidden: 8
    quantizer: {name: vq, codebook_size: 16, codebook_dim: 4}
  objective: {name: reconstruction}
  optimizers:
    tokenizer: {name: adam, lr: 4e-4}
  train: {steps: 10, batch_size: 8}
  measure: {values: [psnr]}
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Places:
    folder = tmp_path_factory.mktemp("places")
    return Places(results=folder / "results", reports=folder / "reports", runs=folder / "runs",
                  cache=folder / "cache", data=folder / "data")


def load(text: str, folder: Path, overrides: Iterable[str] = ()) -> Suite:
    path = folder / "small.yaml"
    path.write_text(text)
    return Suite.load(path, overrides)


def runs(text: str, here: Places, overrides: Iterable[str] = ()) -> list[Run]:
    return load(text, here.cache.parent, overrides).expand(here)


def quantizers(found: list[Run]) -> list[tuple[Any, ...]]:
    keys = ("tokenizer.quantizer.name", "tokenizer.quantizer.codebook_size",
            "tokenizer.quantizer.codebook_dim", "train.seed")
    return [tuple(r.fields[k] for k in keys) for r in found]


def refusal(text: str, here: Places, overrides: Iterable[str] = ()) -> list[str]:
    """The lines that are said, with the suite's folder cut off."""
    with pytest.raises(BadInput) as error:
        suite = load(text, here.cache.parent, overrides)
        found = suite.expand(here)
        for train_id, checked in check_runs(found).items():
            if checked.problem:
                run = next(r for r in found if r.train_id == train_id)
                raise BadInput(suite.locate(run, checked.key, checked.problem))
    return str(error.value).replace(f"{here.cache.parent}/", "").splitlines()


# -- which runs come out -----------------------------------------------------------------------------------


def test_axes_are_multiplied_in_the_order_written(here: Places) -> None:
    text = BASE + """
axes:
  tokenizer.quantizer.name: [vq, ema_vq]
  tokenizer.quantizer.codebook_size: [4, 8, 16]
seeds: [5, 6]
"""
    assert quantizers(runs(text, here)) == [
        (name, size, 4, seed) for name in ("vq", "ema_vq") for size in (4, 8, 16) for seed in (5, 6)]


def test_zipped_keys_move_together_and_are_multiplied_with_axes(here: Places) -> None:
    text = BASE + """
axes: {tokenizer.quantizer.name: [vq, ema_vq]}
zip:
  - {tokenizer.quantizer.codebook_size: [4, 8], tokenizer.quantizer.codebook_dim: [2, 6]}
"""
    assert quantizers(runs(text, here)) == [
        (name, *pair, 0) for name in ("vq", "ema_vq") for pair in ((4, 2), (8, 6))]


def test_included_runs_are_the_base_with_their_settings_and_can_be_labelled(here: Places) -> None:
    text = BASE + """
axes: {tokenizer.quantizer.codebook_size: [4, 8]}
include:
  - {tokenizer.quantizer: {name: ema_vq, decay: 0.5}, label: running means}
  - {tokenizer.quantizer.codebook_dim: 2}
"""
    found = runs(text, here)
    assert quantizers(found) == [("vq", 4, 4, 0), ("vq", 8, 4, 0), ("ema_vq", 512, None, 0), ("vq", 16, 2, 0)]
    assert found[2].label == "running means" and found[2].fields["tokenizer.quantizer.decay"] == 0.5


def test_excluded_runs_are_gone_and_overridden_ones_changed(here: Places) -> None:
    text = BASE + """
axes:
  tokenizer.quantizer.name: [vq, ema_vq]
  tokenizer.quantizer.codebook_size: [4, 8, 16]
exclude:
  - {tokenizer.quantizer.name: ema_vq, tokenizer.quantizer.codebook_size: [4, 16]}
override:
  - match: {tokenizer.quantizer.name: ema_vq}
    set: {tokenizer.quantizer.decay: 0.5, train.steps: 20}
"""
    found = runs(text, here)
    assert quantizers(found) == [("vq", 4, 4, 0), ("vq", 8, 4, 0), ("vq", 16, 4, 0), ("ema_vq", 8, 4, 0)]
    assert [r.train.steps for r in found] == [10, 10, 10, 20]
    assert found[3].fields["tokenizer.quantizer.decay"] == 0.5


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
       dims=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
       seeds=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
def test_expansion_is_the_product(sizes: list[int], dims: list[int], seeds: list[int], here: Places) -> None:
    text = BASE + yaml.safe_dump({"axes": {"tokenizer.quantizer.codebook_size": sizes,
                                           "tokenizer.quantizer.codebook_dim": dims}, "seeds": seeds})
    found = runs(text, here)
    assert {q[1:] for q in quantizers(found)} == set(itertools.product(sizes, dims, seeds))
    assert len(found) == len(sizes) * len(dims) * len(seeds) == len({r.train_id for r in found})
    assert len({r.label for r in found}) == len(found)


def test_an_axis_may_hold_whole_components(here: Places) -> None:
    text = BASE + "axes: {tokenizer.quantizer: [ema_vq, {name: vq, codebook_size: 4}]}\n"
    assert [q[:2] for q in quantizers(runs(text, here))] == [("ema_vq", 512), ("vq", 4)]


def test_two_runs_with_the_same_settings_are_refused(here: Places) -> None:
    text = BASE + "include: [{tokenizer.quantizer.codebook_size: 16}]\naxes: {tokenizer.hidden: [8, 10]}\n"
    assert "have the same settings" in refusal(text, here)[0]


def test_epochs_and_rates_per_image_become_steps_and_rates(here: Places) -> None:
    text = BASE.replace("steps: 10, batch_size: 8", "epochs: 2.5, batch_size: 8")
    assert runs(text, here)[0].train.steps == 20                            # 64 images, 8 a step
    text = text.replace("batch_size: 8", "batch_size: 1000")
    assert runs(text, here)[0].train.steps == 1
    text = BASE.replace("lr: 4e-4", "lr_per_image: 4.5e-6")
    assert runs(text, here)[0].train.optimizers["tokenizer"].lr == pytest.approx(3.6e-5)
    wide = runs(text, here, ["train.batch_size=16"])[0].train
    assert wide.optimizers["tokenizer"].lr == pytest.approx(7.2e-5)


def test_epochs_of_images_that_are_not_here_are_counted_by_the_published_number(here: Places) -> None:
    text = BASE.replace("name: photos, image_size: 16, train_images: 64, test_images: 32",
                        "name: celeba, image_size: 64").replace("steps: 10", "epochs: 1")
    assert runs(text, here)[0].train.steps == round(162_770 / 8)
    unknown = text.replace("name: celeba", "name: image_folder, folder: pets")
    said, = refusal(unknown, here)
    assert said.startswith("small.yaml:12: train.epochs = 1.0: the number of images is not known here")


def test_debug_runs_are_ten_batches_under_an_identity_of_their_own(here: Places) -> None:
    suite = load(BASE, here.cache.parent)
    normal, = suite.expand(here)
    debug, = suite.expand(here, debug=True)
    assert debug.train.steps == 10 and debug.train.debug and debug.train_id != normal.train_id
    assert debug.values[0].spec.images == 64 and debug.values[0].value_id != normal.values[0].value_id


# -- the command line --------------------------------------------------------------------------------------


AXES = BASE + "axes: {tokenizer.quantizer.codebook_size: [4, 8]}\n"


@pytest.mark.parametrize("override, key, wanted", [
    ("optimizers.tokenizer.lr=2e-6", "optimizers.tokenizer.lr", 2e-6),
    ("train.steps=7", "train.steps", 7),
    ("base.train.steps=7", "train.steps", 7),
    ("tokenizer.rectified_skip=false", "tokenizer.rectified_skip", False),
    ("objective.weights.commitment=1", "objective.weights.commitment", 1.0),
    ("optimizers.tokenizer.betas=[0.5, 0.9]", "optimizers.tokenizer.betas", [0.5, 0.9]),
    ("tokenizer.quantizer.init=normal", "tokenizer.quantizer.init", "normal"),
    ("train.seed=12", "train.seed", 12),
])
def test_an_override_reaches_every_run_with_its_type(
    override: str, key: str, wanted: Any, here: Places,
) -> None:
    found = runs(AXES, here, [override])
    assert [r.fields[key] for r in found] == [wanted, wanted]
    assert all(type(r.fields[key]) is type(wanted) for r in found)


def test_an_override_of_an_axis_replaces_its_values(here: Places) -> None:
    assert [q[1] for q in quantizers(runs(AXES, here, ["tokenizer.quantizer.codebook_size=32"]))] == [32]
    assert [q[1] for q in quantizers(runs(AXES, here, ["tokenizer.quantizer.codebook_size=[2,3]"]))] == [2, 3]
    assert [q[3] for q in quantizers(runs(AXES, here, ["seeds=[1,2]", "axes={}"]))] == [1, 2]


def test_overrides_that_make_runs_equal_join_them_with_a_note(here: Places) -> None:
    whole = "tokenizer={name: vqvae, quantizer: vq}"
    suite = load(BASE + "axes: {tokenizer.hidden: [8, 10]}\n", here.cache.parent, [whole])
    assert len(suite.expand(here)) == 1 and "is the same run as" in suite.notes[0]


@pytest.mark.parametrize("override, said", [
    ("train.stepz=4", "command line: train.stepz = 4: no such key; did you mean steps?"),
    ("trian.steps=4", "command line: 'trian.steps=4': no section 'trian'; did you mean train?"),
    ("train.steps=-1", "command line: train.steps = -1: input should be greater than 0"),
    ("train.steps=1.5", "command line: train.steps = 1.5: input should be a valid integer"),
    ("optimizers.tokenizer.lr=fast",
     'command line: optimizers.tokenizer.lr = "fast": input should be a valid number'),
    ("train.flip=no",
     'command line: train.flip = "no": input should be a valid boolean; write true or false'),
    ("tokenizer.quantizer.decay=0.5",
     "command line: tokenizer.quantizer.decay = 0.5: vq has no such key; known: codebook_dim, codebook_size, "
     "entropy, entropy_temperature, init, normalize"),
    ("train.steps", "command line: 'train.steps': an override is written dotted.key=value"),
    ("train=3", "command line: train = 3: expected a mapping"),
    ("tokenizer.hidden=7", "command line: tokenizer.hidden = 7: hidden must be even and at least 2, got 7"),
    ("seeds=3", "command line: seeds = 3: input should be a valid array"),
    ("name=x", "command line: 'name=x': no section 'name'; known: dataset, measure, monitors, objective, "
               "optimizers, tokenizer, train"),
])
def test_a_wrong_override_is_refused_like_a_wrong_line(override: str, said: str, here: Places) -> None:
    assert refusal(BASE, here, [override]) == [said]


# -- resources ---------------------------------------------------------------------------------------------


def test_resources_of_a_run_follow_its_settings_and_are_in_nothing_else(here: Places) -> None:
    settings = """
axes: {tokenizer.hidden: [8, 10]}
zip: [{tokenizer.quantizer.codebook_size: [4, 8]}]
include: [{tokenizer.quantizer.codebook_dim: 2}]
"""
    zipped = settings.replace("8]}]", "8], resources.hours: [1, 2.5]}]")
    text = zipped.replace("2}]", "2, resources: {gpus: 4, pack: 3}}]") + """
override: [{match: {tokenizer.hidden: 10}, set: {resources.gpus: 2, resources.memory_gb: 16}}]
resources: {cpus: 3, hours: 9}
"""
    found, plain = runs(BASE + text, here), runs(BASE + settings, here)
    assert [r.resources.model_dump(exclude_unset=True) for r in found] == [
        {"cpus": 3, "hours": 1.0}, {"cpus": 3, "hours": 2.5},
        {"cpus": 3, "hours": 1.0, "gpus": 2, "memory_gb": 16.0},
        {"cpus": 3, "hours": 2.5, "gpus": 2, "memory_gb": 16.0},
        {"gpus": 4, "pack": 3}]
    assert [r.model_copy(update={"resources": Resources()}) for r in found] == plain
    assert not any("resources" in key for r in found for key in r.fields)


def test_resources_on_the_command_line_are_those_of_all_runs(here: Places) -> None:
    text = BASE + """
axes: {tokenizer.hidden: [8, 10]}
override: [{match: {tokenizer.hidden: 10}, set: {resources.hours: 48}}]
resources: {hours: 3, cpus: 2}
"""
    def asked(*overrides: str) -> list[tuple[float, int]]:
        return [(r.resources.hours, r.resources.cpus) for r in runs(text, here, overrides)]

    assert asked() == [(3, 2), (48, 2)]
    assert asked("resources.hours=1") == [(1, 2), (1, 2)]
    assert asked("resources={hours: 5}") == [(5, 1), (5, 1)]
    suite = load(text, here.cache.parent, ["resources.hours=1", "train.steps=5"])
    assert suite.overrides == {"train.steps": 5} and suite.frame.resources.hours == 1


def test_the_number_of_processes_follows_from_the_resources() -> None:
    for asked, world in [({}, 1), ({"gpus": 0}, 1), ({"gpus": 3}, 3), ({"gpus": 3, "nodes": 2}, 6), ({"nodes": 2}, 2),
                         ({"processes": 2}, 2), ({"gpus": 4, "processes": 1, "nodes": 5, "pack": 2}, 5)]:
        assert Resources(**asked).world == world == Resources(**asked).per_node * asked.get("nodes", 1)


RESOURCES = BASE + "axes: {tokenizer.hidden: [8, 10]}\n"


@pytest.mark.parametrize("text, said", [
    (BASE + "axes:\n  resources.hours: [1, 2]\n",
     "small.yaml:15: axes.resources.hours = [1, 2]: resources are in no identity, so this would be the same run "
     "several times; give them in override, or in zip beside the key that they go with"),
    (BASE + "zip:\n  - resources.hours: [1, 2]\n    resources.cpus: [1, 2]\n",
     'small.yaml:15: zip = ["resources.hours", "resources.cpus"]: resources are in no identity, so this would be the '
     "same run several times; give them in override, or in zip beside the key that they go with"),
    (RESOURCES + "override:\n- match: {tokenizer.hidden: 8}\n  set:\n    resources.gpu: 1\n",
     "small.yaml:18: resources.gpu = 1: no such key; did you mean gpus?"),
    (RESOURCES + "override:\n- match: {tokenizer.hidden: 8}\n  set:\n    resources.hours: -1\n",
     "small.yaml:18: resources.hours = -1: input should be greater than 0"),
    (RESOURCES + "override:\n- match: {tokenizer.hidden: 8}\n  set: {resources: many}\n",
     'small.yaml:17: resources = "many": expected a mapping'),
    (RESOURCES + "include:\n- {train.steps: 5, resources.nodes: two}\n",
     'small.yaml:16: resources.nodes = "two": input should be a valid integer'),
    (BASE + "zip:\n- tokenizer.hidden: [8, 10]\n  resources.gpus: [1, 1.5]\n",
     "small.yaml:16: resources.gpus = 1.5: input should be a valid integer"),
    (BASE + "resources: {gpus: 3}\n",
     "small.yaml:12: train.batch_size = 8: resources.nodes = 1, resources.gpus = 3 make 3 processes, which cannot "
     "share it equally; make it a multiple of 3, or change the resources"),
    (BASE.replace("batch_size: 8", "batch_size: 8, accumulation: 4") + "resources: {nodes: 2, processes: 2}\n",
     "small.yaml:12: train.batch_size = 8: resources.nodes = 2, resources.processes = 2 make 4 processes, which cannot "
     "share it equally in train.accumulation = 4 parts; make it a multiple of 16, or change the resources"),
    (RESOURCES + "override: [{match: {tokenizer.hidden: 8}, set: {resources.gpus: 16}}]\n",
     "small.yaml:12: train.batch_size = 8: resources.nodes = 1, resources.gpus = 16 make 16 processes, which cannot "
     "share it equally; make it a multiple of 16, or change the resources"),
    (BASE.replace("base:", "base:\n  resources: {gpus: 1}"),
     "small.yaml:4: base.resources: resources are written beside base, at the top of a suite"),
    (BASE + "resources: 5\n", "small.yaml:14: resources = 5: input should be an object"),
])
def test_wrong_resources_are_refused_with_their_place(text: str, said: str, here: Places) -> None:
    assert refusal(text, here) == [said]


def test_wrong_resources_on_the_command_line_are_refused(here: Places) -> None:
    said, = refusal(BASE, here, ["resources.gpu=1"])
    assert said == "command line: resources.gpu = 1: no such key; did you mean gpus?"
    assert "command line: resources.cpus = 0: input should be greater than or equal to 1" in refusal(
        BASE, here, ["resources.cpus=0"])
    assert "make 5 processes" in refusal(BASE, here, ["resources.gpus=5"])[0]


# -- YAML --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, value", [
    ("4e-4", 4e-4), ("1E5", 1e5), (".5", 0.5), ("-2.", -2.0), ("1_000", "1_000"), ("012", 12), ("0x1F", 31),
    ("0o17", 15), ("no", "no"), ("off", "off"), ("y", "y"), ("true", True), ("False", False), ("null", None),
    ("~", None), ("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"), ("nan", "nan"), ("+3", 3), ("-0", 0),
])
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    data, lines = load_yaml(f"a: {text}\nb: '{text}'\n", "x.yaml")
    assert data["a"] == value and type(data["a"]) is type(value)
    assert data["b"] == text                        # in quotes it is text
    assert lines == {(): 1, ("a",): 1, ("b",): 2}
    assert scalar(text) == value


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers(-10**6, 10**6) | st.text("abc xyz-", max_size=6)
                    | st.floats(allow_nan=False, allow_infinity=False),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text("abc.", min_size=1, max_size=4), inner, max_size=3)))
def test_what_yaml_writes_is_read_back(value: Any) -> None:
    assert load_yaml(yaml.safe_dump(value), "x.yaml")[0] == value


def test_every_key_and_item_has_its_line() -> None:
    data, lines = load_yaml("a:\n  b: [1,\n    2]\n\n  c:\n  - x: 1\n  - y\n", "x.yaml")
    assert data == {"a": {"b": [1, 2], "c": [{"x": 1}, "y"]}}
    assert lines == {(): 1, ("a",): 1, ("a", "b"): 2, ("a", "b", 0): 2, ("a", "b", 1): 3, ("a", "c"): 5,
                     ("a", "c", 0): 6, ("a", "c", 0, "x"): 6, ("a", "c", 1): 7}


@pytest.mark.parametrize("text, said", [
    ("a: 1\nb: 2\na: 3\n", "x.yaml:3: a: the key is written twice (first in line 1); keep one"),
    ("a:\n  b: 1\n  b: 2\n", "x.yaml:3: a.b: the key is written twice (first in line 2); keep one"),
    ("a: [1\nb: 2\n", "x.yaml:2: not valid YAML"),
    ("a: !!python/name:os.system\n",
     "x.yaml:1: the tag tag:yaml.org,2002:python/name:os.system is not allowed"),
    ("a: &x [1, *x]\n", "x.yaml:1: a.1: an alias inside what it stands for"),
    ("? [1]\n: 2\n", "x.yaml:1: a key must be a word, not a list or a mapping"),
    ("a: 1\n---\nb: 2\n", "x.yaml:2: not valid YAML"),
    ("\tname: x\n", "x.yaml:1: not valid YAML"),
])
def test_what_is_no_plain_data_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(BadInput) as error:
        load_yaml(text, "x.yaml")
    assert str(error.value).startswith(said)


# -- what is said ------------------------------------------------------------------------------------------


def changed(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


MORE = "  measure: {values: [psnr]}\n"


@pytest.mark.parametrize("text, said", [
    (changed("steps: 10", "stepz: 10"), "small.yaml:12: train.stepz = 10: no such key; did you mean steps?"),
    (changed("steps: 10", "steps: -4"), "small.yaml:12: train.steps = -4: input should be greater than 0"),
    (changed("steps: 10", "steps: 10.0"),
     "small.yaml:12: train.steps = 10.0: input should be a valid integer"),
    (changed("steps: 10", "steps: 10, epochs: 1"),
     "small.yaml:12: train: give train.steps, or train.epochs; one of them"),
    (changed("steps: 10", "steps: 10, accumulation: 3"),
     "small.yaml:12: train.accumulation = 3: must divide train.batch_size (8)"),
    (changed("steps: 10", "steps: 10, flip: no"),
     'small.yaml:12: train.flip = "no": input should be a valid boolean; write true or false'),
    (changed("steps: 10", "steps: 10, compile: maybe"),
     'small.yaml:12: train.compile = "maybe": input should be a valid boolean or \'auto\''),
    (changed("{steps: 10, batch_size: 8}", "5"), "small.yaml:12: train = 5: expected a mapping"),
    (changed("lr: 4e-4", "lr: '4e-4'"),
     'small.yaml:11: optimizers.tokenizer.lr = "4e-4": input should be a valid number; '
     "a number in quotes is text"),
    (changed("lr: 4e-4", "lr: 1e999"),
     "small.yaml:11: optimizers.tokenizer.lr = Infinity: input should be a finite number"),
    (changed("lr: 4e-4", "lr: 4e-4, betas: [0.9, 1.5]"),
     "small.yaml:11: optimizers.tokenizer.betas.1 = 1.5: input should be less than 1"),
    (changed("lr: 4e-4", "lr: 4e-4, clip_norm: 0"),
     "small.yaml:11: optimizers.tokenizer.clip_norm = 0: input should be greater than 0"),
    (changed("lr: 4e-4", "lr: 4e-4, lr_scale: {quantiser: 2}"),
     "small.yaml:11: optimizers.tokenizer.lr_scale.quantiser = 2: no parameter's name begins so; "
     "did you mean quantizer?"),
    (changed("    tokenizer: {name: adam", "    tokeniser: {name: adam"),
     "small.yaml:10: optimizers: the player tokenizer moves in reconstruction and needs an optimizer of its "
     "own"),
    (changed("hidden: 8", "hiden: 8"),
     "small.yaml:7: tokenizer.hiden = 8: vqvae has no such key; did you mean hidden?"),
    (changed("hidden: 8", "hidden: true"), "small.yaml:7: tokenizer.hidden = true: expected int"),
    (changed("hidden: 8", "hidden: 7"),
     "small.yaml:7: tokenizer.hidden = 7: hidden must be even and at least 2, got 7"),
    (changed("name: vqvae", "name: vqvea"),
     "small.yaml:6: tokenizer.name = \"vqvea\": there is no tokenizer 'vqvea'; did you mean vqvae?"),
    (changed("codebook_size: 16", "codebok_size: 16"),
     "small.yaml:8: tokenizer.quantizer.codebok_size = 16: vq has no such key; did you mean codebook_size?"),
    (changed("codebook_size: 16", "codebook_size: 0"),
     "small.yaml:8: tokenizer.quantizer.codebook_size = 0: codebook_size must be at least 1, got 0"),
    (changed("codebook_size: 16", "init: unifrom"),
     'small.yaml:8: tokenizer.quantizer.init = "unifrom": expected '
     "Literal['uniform', 'kaiming', 'variance', 'normal', 'fan_in_uniform', 'samples']; did you mean uniform?"),
    (changed("image_size: 16", "image_size: 18"),
     "small.yaml:4: dataset.image_size = 18: vqvae downsamples by 4, so "
     "dataset.image_size must be a multiple of 4, got 18"),
    (changed("image_size: 16", "image_size: 0"),
     "small.yaml:4: dataset: Photographs: image_size = 0: expected a positive number of pixels"),
    (changed("[psnr]", "[psnrr]"),
     'small.yaml:13: measure.values.0 = "psnrr": protocol ours-1 has no such value; did you mean psnr?'),
    (changed("[psnr]", "[]"), "small.yaml:13: measure.values = []: at least one value is needed"),
    (changed("[psnr]", "[psnr], protocol: ours-9"),
     "small.yaml:13: measure.protocol = \"ours-9\": there is no protocol 'ours-9'; did you mean ours-2?"),
    (changed("[psnr]", "[psnr], weights: average"),
     'small.yaml:13: measure.weights = "average": there are no averaged '
     "weights without train.average; set it, for example to 0.999"),
    (changed("{name: reconstruction}", "{name: reconstruction, weights: {pixl: 1}}"),
     "small.yaml:9: objective.weights.pixl = 1: no such loss; did you mean pixel?"),
    (changed("{name: reconstruction}", "{name: reconstruction, losses: {pixel: {name: pixel, norm: l3}}}"),
     "small.yaml:9: objective.losses.pixel.norm = \"l3\": expected Literal['l1', 'l2']; known: l1, l2"),
    (changed(MORE, ""), "small.yaml:3: measure.values: this key is missing"),
    (changed("  measure:", "  mesure:"),
     "small.yaml:13: base.mesure: no such section; did you mean measure?"),
    (changed("name: small", "name: Small!"), "small.yaml:1: name = \"Small!\": string should match pattern "
                                             r"'^[a-z0-9][a-z0-9_\-]*$'"),
    (BASE + "seeds: []\n", "small.yaml:14: seeds = []: at least one value is needed"),
    (BASE + "axes: {train.steps: []}\n", "small.yaml:14: axes.train.steps: an axis needs at least one value"),
    (BASE + "axes:\n  tokenizer.quantizer.codebook_sise: [4]\n",
     "small.yaml:15: tokenizer.quantizer.codebook_sise = 4: vq has no such key; did you mean codebook_size?"),
    (BASE + "zip: [{train.steps: [1, 2], train.batch_size: [1]}]\n",
     "small.yaml:14: zip: keys that move together need "
     "equally many values, got {'train.steps': 2, 'train.batch_size': 1}"),
    (BASE + "exclude: [{train.steps: 99}]\n", 'small.yaml:14: exclude: {"train.steps": 99} matches no run'),
    (BASE + "override: [{match: {train.steps: 99}, set: {train.steps: 3}}]\n",
     'small.yaml:14: override: {"train.steps": 99} matches no run'),
    (BASE + "exclude: [{train.steps: 10}]\n", "small.yaml: exclude: leaves no run"),
    (BASE + "resources: {gpu: 1}\n", "small.yaml:14: resources.gpu = 1: no such key; did you mean gpus?"),
    (BASE + "report: {tables: [{name: a, rows: [{key: x, titel: y}], columns: [psnr]}]}\n",
     'small.yaml:14: report.tables.0.rows.0.titel = "y": no such key; did you mean title?'),
    (BASE.replace(MORE, MORE + "  monitors: [codebook_usag]\n"),
     'small.yaml:14: monitors.0.name = "codebook_usag": '
     "there is no monitor 'codebook_usag'; did you mean codebook_usage?"),
    (BASE.replace("question: What", "questoin: What"), "small.yaml:1: question: this key is missing"),
    ("[1, 2]", "small.yaml: a suite is a mapping with name, question, base, ...; see docs/suites.md"),
])
def test_a_refusal_names_file_line_key_value_and_the_nearest_name(text: str, said: str, here: Places) -> None:
    assert said in refusal(text, here)


def test_all_problems_are_said_at_once(here: Places) -> None:
    text = BASE.replace("hidden: 8", "hiden: 8").replace("steps: 10", "steps: 0")
    text = text.replace("lr: 4e-4", "lr: no")
    said = refusal(text, here)
    assert [re.match(r"small.yaml:(\d+): ([\w.]+)", line).groups() for line in said] == [
        ("7", "tokenizer.hiden"), ("12", "train.steps"), ("11", "optimizers.tokenizer.lr")]


def test_an_unknown_suite_is_refused_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(BadInput, match="no suite 'quickstrat' in suites/; did you mean quickstart"):
        Suite.load("quickstrat")
    with pytest.raises(BadInput, match="suites/celeba_codebook_sise.yaml: no such suite file; did you mean"):
        Suite.load("suites/celeba_codebook_sise.yaml")


# -- what ships --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", sorted(p for p in (ROOT / "suites").glob("*.yaml") if "task: points" not in p.read_text()), ids=lambda p: p.stem)
def test_every_shipped_suite_passes_its_check(suite: Path, here: Places) -> None:
    loaded = Suite.load(suite)
    assert loaded.name == suite.stem and loaded.frame.question.endswith("?")
    checked = check_runs(loaded.expand(here))
    assert all(c.problem is None and c.skip is None for c in checked.values())


@pytest.mark.parametrize("suite", ["celeba_codebook_size", "celeba_codebook_dim", "celeba_readme_table"])
def test_the_celeba_suites_have_the_published_recipe(suite: str, here: Places) -> None:
    for run in Suite.load(ROOT / "suites" / f"{suite}.yaml").expand(here):
        spec, optimizer = run.train, run.train.optimizers["tokenizer"]
        assert (spec.steps, spec.batch_size, spec.seed, spec.accumulation) == (500_000, 256, 8888, 1)
        assert (optimizer.name, optimizer.lr, optimizer.betas) == ("adam", 4e-4, (0.9, 0.999))
        assert (optimizer.clip_norm, optimizer.warmup_steps, optimizer.schedule) == (None, 0, "constant")
        assert run.fields["tokenizer.hidden"] == 256 and run.fields["dataset.image_size"] == 64
        assert run.data["train"].images == 162_770


def test_the_readme_table_has_its_six_rows_and_nine_columns(here: Places) -> None:
    suite = Suite.load(ROOT / "suites/celeba_readme_table.yaml")
    assert {q[:3] for q in quantizers(suite.expand(here))} == {
        ("vq", 512, 64), ("vq", 1024, 64), ("vq", 2048, 64), ("vq", 512, 16), ("vq", 512, 4),
        ("ema_vq", 512, 64)}
    table, = suite.frame.report.tables
    assert len(table.rows) + len(table.columns) == 9


# -- components and their signatures -----------------------------------------------------------------------


EVERY = [(kind, name) for kind in HOMES for name in available(kind)]
every_component = pytest.mark.parametrize("kind, name", EVERY, ids=lambda x: x)


@every_component
def test_the_signature_in_the_source_is_the_real_one(kind: str, name: str) -> None:
    read = signature(kind, name).keywords
    entry = resolve(kind, name)
    real = [p for p in inspect.signature(entry).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert list(read) == [p.name for p in real]
    for p in real:
        keyword = read[p.name]
        assert keyword.text.replace('"', "'") == str(p.annotation).replace('"', "'")
        if p.default is p.empty:
            assert keyword.default is REQUIRED
        else:
            assert keyword.default == p.default and type(keyword.default) is type(p.default)


@every_component
def test_defaults_are_what_their_annotation_says(kind: str, name: str) -> None:
    """A default that a check would turn into another type would give other ids when it is written out."""
    for key, keyword in signature(kind, name).keywords.items():
        if keyword.default is not REQUIRED:
            written = json.loads(json.dumps(keyword.default))
            bound = bind_value(keyword.annotation, keyword.text, written, (key,), fail)
            if isinstance(bound, ComponentSpec):            # a component, or its name: bound where it is left out, too
                default = keyword.default
                assert bound.name == (default["name"] if isinstance(default, dict) else default), key
                continue
            assert bound == keyword.default and type(bound) is type(keyword.default), key


@every_component
def test_a_component_is_called_like_its_file_and_says_what_it_is(kind: str, name: str) -> None:
    assert source_file(kind, name).stem == name
    entry = resolve(kind, name)
    module = importlib.import_module(entry.__module__)
    assert module.__name__ == f"{HOMES[kind]}.{name}"
    assert signature(kind, name).summary and (entry.__doc__ or module.__doc__)
    assert signature(kind, name).attributes.get("revision", 1) == getattr(entry, "revision", 1)


def test_positional_arguments_are_the_owners_and_no_suites() -> None:
    assert "image_size" not in signature("tokenizer", "vqvae").keywords
    with pytest.raises(AssertionError, match="no such key"):
        bind("tokenizer", {"name": "vqvae", "image_size": 64, "quantizer": "vq"}, (), fail)


def test_nested_components_are_known_by_their_annotation() -> None:
    annotation = signature("tokenizer", "vqvae").keywords["quantizer"].annotation
    assert issubclass(annotation, Part) and annotation.kind == "quantizer"
    losses = {"a": "pixel", "b": {"name": "pixel", "norm": "l1"}}
    bound = bind("objective", {"name": "reconstruction", "losses": losses}, ("o",), fail)
    assert [c.kwargs for _, c in bound.nested()] == [{"norm": "l2"}, {"norm": "l1"}]
    assert [p for p, _ in bound.nested()] == ["losses.a", "losses.b"]


def test_code_from_outside_is_known_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = '"""Mine."""\nfrom implementations.quantizers.vq import VQ\n\n\n' \
             'class Mine(VQ):\n    """Mine."""\n\n' \
             "    def __init__(self, latent, *, codebook_size: int = 4) -> None:\n" \
             "        super().__init__(latent, codebook_size=codebook_size)\n"
    (tmp_path / "my_module_of_quantizers.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    first = signature("quantizer", "my_module_of_quantizers:Mine")
    assert first.outside and isinstance(first.revision, str)
    before = first.revision
    (tmp_path / "my_module_of_quantizers.py").write_text(source + "# changed\n")
    assert first.revision != before
    assert signature("quantizer", "vq").revision == 1
    assert resolve("quantizer", "my_module_of_quantizers:Mine").__name__ == "Mine"


@pytest.mark.parametrize("protocol", protocols())
def test_every_protocol_names_metrics_with_valid_keywords(protocol: str) -> None:
    for name, entry in load_protocol(protocol).values.items():
        keywords = {k: v for k, v in entry.items() if k not in ("metric", "prepare")}
        bind("metric", {"name": entry["metric"], **keywords}, (protocol, name), fail)

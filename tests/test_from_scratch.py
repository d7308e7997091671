"""Each record says whether its tokenizer started from nothing, and names its pretrained parts, as published ones do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from report_records import record
from tiny import fail, train_spec
from typer.testing import CliRunner

from bench.cli import app
from bench.provenance import TITLES, origins
from bench.registry import available, signature
from bench.report.formats import escape_latex
from bench.report.spec import TableSpec
from bench.report.tables import build_table
from bench.results import read_records
from bench.spec import InitFrom, bind
from bench.weights import FILES

LOSSES = {"perceptual": {"name": "lpips", "net": "vgg"}, "logits": {"name": "classifier_logits", "net": "random"}}


def objective(**given):
    return bind("objective", {"name": "reconstruction"} | given, ("objective",), fail)


def test_networks_that_a_loss_looks_through_are_named_and_the_tokenizer_is_from_scratch() -> None:
    assert origins(train_spec()) == {"from_scratch": True, "pretrained": []}
    spec = train_spec(objective=objective(losses={"l1": {"name": "pixel"}} | LOSSES))
    assert origins(spec) == {"from_scratch": True, "pretrained": ["LPIPS-VGG (loss)"]}
    adversarial = bind("objective", {
        "name": "adversarial", "losses": {"perceptual": LOSSES["perceptual"]},
        "discriminator": {"name": "dino", "trunk": "dino_vits16"}}, ("objective",), fail)
    assert origins(train_spec(objective=adversarial)) == {
        "from_scratch": True, "pretrained": ["DINO ViT-S/16 (discriminator)", "LPIPS-VGG (loss)"]}


@pytest.mark.parametrize(("part", "named"), [("table", "codes of clip.npy (table)"), ("init", "codes of clip.npy (init)")])
def test_a_codebook_of_another_networks_features_is_not_from_scratch(part: str, named: str) -> None:
    given = {"name": "loaded" if part == "table" else "file", "file": "/home/somebody/clip.npy", "sha256": "0123456789"}
    spec = train_spec({"name": "codebook_vq", "codebook_size": 16, "codebook_dim": 4, part: given})
    assert origins(spec) == {"from_scratch": False, "pretrained": [named]}


@pytest.mark.parametrize(("label", "shown"), [("stage one", "stage one"), ("/home/somebody/last.ckpt", "last.ckpt")])
def test_weights_of_another_run_are_not_from_scratch(label: str, shown: str) -> None:
    spec = train_spec(init_from=InitFrom(run="0123456789ab"))
    assert origins(spec, label) == {"from_scratch": False, "pretrained": [f"weights of {shown} (start)"]}


def test_every_network_that_something_trains_with_has_a_name_in_records() -> None:
    kinds = ("loss", "discriminator", "tokenizer", "quantizer", "objective")
    needs = {need for kind in kinds for name in available(kind) for need in signature(kind, name).attributes.get("needs", ())}
    assert needs
    fixed = {need for need in needs if "{" not in need}
    assert fixed | {name for name in FILES if not name.startswith(("frechet", "inception"))} <= TITLES.keys()


def test_a_record_from_before_the_fields_existed_has_a_dash() -> None:
    spec = TableSpec(name="t", rows=("tokenizer.quantizer.codebook_size",),
                     columns=("provenance.from_scratch", "provenance.pretrained"))
    records = [record("a", size=1), record("b", size=2, provenance={"from_scratch": False, "pretrained": ["x (loss)", "y"]})]
    assert [[cell.text for cell in row.cells] for row in build_table(records, spec).rows] == [["–", "–"], ["×", "x (loss), y"]]


def test_a_record_of_a_run_says_it_and_a_table_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("results", "reports", "runs", "cache", "weights"):
        monkeypatch.setenv(f"BENCH_{name.upper()}", str(tmp_path / name))
    rows = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    np.save(tmp_path / "features.npy", rows)
    digest = hashlib.sha256((tmp_path / "features.npy").read_bytes()).hexdigest()[:12]
    table = {"name": "loaded", "file": str(tmp_path / "features.npy"), "sha256": digest, "projector": "linear"}
    suite = tmp_path / "origins.yaml"
    quantizers = [{"name": "vq", "codebook_size": 16, "codebook_dim": 4},
                  {"name": "codebook_vq", "codebook_size": 16, "codebook_dim": 4, "table": table}]
    suite.write_text(yaml.safe_dump({
        "name": "origins", "question": "From what?", "base": {
            "dataset": {"name": "photos", "image_size": 64, "train_images": 16, "test_images": 4},
            "tokenizer": {"name": "vqvae", "hidden": 8},
            "objective": {"name": "reconstruction", "losses": {"l2": {"name": "pixel"}, "logits": LOSSES["logits"]}},
            "optimizers": {"tokenizer": {"lr": 1e-3}}, "train": {"steps": 2, "batch_size": 4},
            "measure": {"values": ["psnr"]}},
        "axes": {"tokenizer.quantizer": quantizers},
        "report": {"tables": [{"name": "t", "rows": ["tokenizer.quantizer"],
                               "columns": ["psnr", "provenance.from_scratch", "provenance.pretrained"]}]}}))
    done = CliRunner().invoke(app, ["run", str(suite), "--launcher", "debug"])
    assert done.exit_code == 0, (done.output, done.exception)
    records = {r.fields["tokenizer.quantizer.name"]: r for r in read_records(tmp_path / "results" / "origins" / "records.jsonl")}
    assert records["vq"].provenance["from_scratch"] is True and records["vq"].provenance["pretrained"] == []
    assert records["codebook_vq"].provenance["from_scratch"] is False
    assert records["codebook_vq"].provenance["pretrained"] == ["codes of features.npy (table)"]
    markdown = (tmp_path / "reports" / "origins" / "table.md").read_text()
    assert "| √ | none |" in markdown and "| × | codes of features.npy (table) |" in markdown
    # a checkpoint of a run of ours is what its run was
    final = tmp_path / "runs" / records["codebook_vq"].train_id / "checkpoints" / "final.pt"
    for given in (final, final.parents[1]):
        done = CliRunner().invoke(app, ["eval", "--checkpoint", str(given), "dataset.name=photos", "dataset.image_size=64",
                                        "dataset.test_images=4", "measure.values=[psnr]", "--name", "mine", "--json"])
        assert done.exit_code == 0, (done.output, done.exception)
        again, = read_records(tmp_path / "results" / "mine" / "records.jsonl")
        assert again.train_id == json.loads(done.output)[0]["train_id"]
        assert again.provenance["from_scratch"] is False
        assert again.provenance["pretrained"] == ["codes of features.npy (table)"]
        assert again.layout == records["codebook_vq"].layout and again.layout["downsampling"] == 4


def test_the_signs_have_a_form_in_latex() -> None:
    assert escape_latex("√ ×") == r"$\surd$ $\times$"

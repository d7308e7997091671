"""Published checkpoints: found, fetched, opened safely, converted strictly, measured, and shown."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from report_records import record
from rich.console import Console
from safetensors.torch import save_file
from tiny import ROOT, fail, places
from torch import Tensor
from typer.testing import CliRunner

import bench
import bench.cli_checkpoints
from bench import catalogue
from bench.build import build_model
from bench.cli import app
from bench.errors import BadInput
from bench.load import described, load_tokenizer
from bench.registry import available, resolve, signature
from bench.report.spec import TableSpec
from bench.report.tables import build_table, terminal_table, to_csv, to_html, to_latex, to_markdown
from bench.results import Component, Record, read_records
from bench.spec import bind
from bench.suite import Suite, checkpoint_report

SHARED = Path(os.environ.get("BENCH_SHARED") or ROOT.parent / "shared") / "data"
MODELS = SHARED / "models"
EXPLORE, TAEF2 = MODELS / "vqvae-explore" / "vqvae.pt", MODELS / "taef2"
trained = pytest.mark.skipif(not EXPLORE.is_file(), reason=f"the trained tokenizers are not in {MODELS}")


def explore_state(hidden: int = 8, codes: int = 16, blocks: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """A small state dict as github.com/NimbleBoxAI/explore-weights names its tensors, of seeded numbers."""
    half = hidden // 2
    shapes: dict[str, tuple[int, ...]] = {
        "encoder._blocks.conv_1.weight": (half, 3, 4, 4), "encoder._blocks.conv_2.weight": (hidden, half, 4, 4),
        "encoder._blocks.conv_3.weight": (hidden, hidden, 3, 3), "pre_vq_conv.weight": (hidden, hidden, 1, 1),
        "vq_vae.codebook.weight": (codes, hidden), "decoder._blocks.conv_1.weight": (hidden, hidden, 3, 3),
        "decoder._blocks.conv_t_1.weight": (hidden, half, 4, 4), "decoder._blocks.conv_t_2.weight": (half, 3, 4, 4),
    }
    for side in ("encoder", "decoder"):
        for i in range(blocks):
            block = f"{side}._blocks.residual.residual_blocks.residual_{i}._block"
            shapes |= {f"{block}.conv_1.weight": (half, hidden, 3, 3), f"{block}.conv_2.weight": (hidden, half, 1, 1)}
    for key in [k for k in shapes if "_blocks.conv" in k or "pre_vq" in k]:
        width = shapes[key][1 if "conv_t" in key else 0]
        shapes[key.replace("weight", "bias")] = (width,)
    return seeded(shapes, seed)


def seeded(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Numbers that keep activations at about their size."""
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
            for key, shape in shapes.items()}


def pictures(count: int = 2, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.pt"
    torch.save(explore_state(), path)
    return path


# -- formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", available("format"))
def test_a_format_says_whose_it_is_and_why_it_ignores(name: str) -> None:
    made = resolve("format", name)()
    assert made.title and made.code.count("/") == 1 and made.pixels[0] < made.pixels[1]
    assert all(reason.strip() for reason in made.ignored.values())
    assert signature("format", name).summary


def test_the_explore_vqvae_is_the_published_network(small: Path) -> None:
    """Against the network as its data sheet describes it, written with functions alone."""
    state, x = explore_state(), pictures()

    def conv(h: Tensor, name: str, **how: int) -> Tensor:
        return F.conv2d(h, state[f"{name}.weight"], state.get(f"{name}.bias"), **how)

    def blocks(h: Tensor, side: str) -> Tensor:
        name = f"{side}._blocks.residual.residual_blocks.residual_0._block"
        h = F.relu(h)
        return F.relu(h + conv(F.relu(conv(h, f"{name}.conv_1", padding=1)), f"{name}.conv_2"))

    h = F.relu(conv(x / 2, "encoder._blocks.conv_1", stride=2, padding=1))
    h = F.relu(conv(h, "encoder._blocks.conv_2", stride=2, padding=1))
    h = conv(blocks(conv(h, "encoder._blocks.conv_3", padding=1), "encoder"), "pre_vq_conv")
    table = state["vq_vae.codebook.weight"]
    codes = torch.cdist(h.permute(0, 2, 3, 1).flatten(0, 2).double(), table.double()).argmin(1)
    h = table[codes].view(2, 4, 4, -1).permute(0, 3, 1, 2)
    h = blocks(conv(h, "decoder._blocks.conv_1", padding=1), "decoder")
    for layer in ("conv_t_1", "conv_t_2"):
        name = f"decoder._blocks.{layer}"
        h = F.conv_transpose2d(h, state[f"{name}.weight"], state[f"{name}.bias"], stride=2, padding=1)
        h = F.relu(h) if layer == "conv_t_1" else h
    ours = load_tokenizer(small, format="explore-vqvae", image_size=16)
    assert torch.equal(ours.tokenize(x).flatten(), codes) and len(codes.unique()) >= 3
    torch.testing.assert_close(ours(x).reconstruction, 2 * h, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.detokenize(ours.tokenize(x)), 2 * h, rtol=0, atol=1e-5)


def test_a_key_that_is_not_known_or_not_there_is_an_error(tmp_path: Path) -> None:
    for change, said in (({"loss.weight": torch.ones(1)}, "loss.weight: not known in the format of explore VQ-VAE"),
                         ({"encoder._blocks.conv_3.bias": None}, "encoder.4.bias is missing"),
                         ({"pre_vq_conv.bias": torch.ones(3)}, "to_latents.bias has the shape 3"),
                         ({"pre_vq_conv.bias": 3.0}, "to_latents.bias is no tensor but float")):
        state = {k: v for k, v in (explore_state() | change).items() if v is not None}
        path = tmp_path / "changed.pt"
        torch.save({"state_dict": state}, path)
        with pytest.raises(BadInput, match=said.replace("(", r"\(")) as error:
            load_tokenizer(path, format="explore_vqvae", image_size=16)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content, said", [
    (b"", "no weights can be read"), (b"no weights", "no weights can be read"), ([1, 2], "holds list"),
    ({"epoch": 3}, "no state dict in it, neither at the top nor under state_dict or model; it holds epoch"),
])
def test_what_is_no_checkpoint_is_told_in_a_sentence(content: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(BadInput, match=said):
        load_tokenizer(path, format="explore_vqvae")
    with pytest.raises(BadInput, match="Say so with --format"):
        load_tokenizer(path)
    with pytest.raises(BadInput, match="did you mean explore_vqvae"):
        load_tokenizer(path, format="explore_vqve")


class Callback:
    """What a training framework leaves in its checkpoints."""

    ran: list[str] = []

    def __reduce__(self) -> tuple:
        return come_to_life, ("now",)


def come_to_life(word: str) -> Callback:
    Callback.ran.append(word)
    return Callback()


def test_objects_of_other_programs_are_passed_over_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "lightning.ckpt"
    torch.save({"state_dict": explore_state(), "callbacks": {Callback: 1}}, path)
    ours = load_tokenizer(path, format="explore_vqvae", image_size=16)
    assert ours.tokenize(pictures()).shape == (2, 16, 1)
    torch.save({"state_dict": explore_state(), "callbacks": Callback()}, path)
    Callback.ran.clear()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    load_tokenizer(path, format="explore_vqvae", image_size=16)
    assert not Callback.ran


class Order:
    """What somebody puts into a file so that reading it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["zip", "old", "protocol 0", "protocol 2", "protocol 4", "module"])
def test_what_would_be_run_is_refused_in_our_words(kind: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "bad.pt", tmp_path / "was run"
    order: object = Order(f"touch '{mark}'")
    if kind.startswith("protocol"):
        path.write_bytes(pickle.dumps(order, protocol=int(kind[-1])))
    elif kind == "module":                              # of a class that is not here, before torch 1.6
        torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=False)
    else:
        torch.save({"state_dict": explore_state(), "x": order}, path, _use_new_zipfile_serialization=kind == "zip")
    what = {"module": "torch.nn.modules.linear.Linear", "protocol 4": "Python objects"}.get(kind, f"{os.name}.system")
    with warnings.catch_warnings(), pytest.raises(BadInput) as error:
        warnings.simplefilter("error")
        load_tokenizer(path, format="explore_vqvae")
    assert str(error.value) == (
        f"{path}: refused, because it holds {what} beside tensors, and nothing that a weight file asks for is run here; get it "
        f"as safetensors, or as a plain state dict (torch.save(model.state_dict(), FILE))")
    assert not mark.exists()
    if kind != "module":
        pickle.loads(pickle.dumps(order))               # it would have been
        assert mark.exists()


@pytest.mark.parametrize("suffix", ["zip", "old", "safetensors"])
def test_a_file_that_is_cut_short_is_told_so_wherever_it_ends(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"whole.{suffix}"
    if suffix == "safetensors":
        save_file(explore_state(), path)
    else:
        torch.save(explore_state(), path, _use_new_zipfile_serialization=suffix == "zip")
    whole = path.read_bytes()
    assert load_tokenizer(path, format="explore_vqvae", image_size=16)
    for size in (0, 1, 2, 4, 10, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BadInput) as error:
            load_tokenizer(path, format="explore_vqvae", image_size=16)
        assert str(error.value) == (f"{path}: no weights can be read from it: it is cut short, or no weight file ({size:,} bytes); "
                                    f"fetch it again")


# -- our own -------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_again_it_is_the_same(small: Path, tmp_path: Path) -> None:
    before = load_tokenizer(small, format="explore_vqvae", image_size=16)
    folder = before.save_pretrained(tmp_path / "ours")
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "tokenizer.json"}
    after, x = bench.load_tokenizer(folder), pictures()
    assert not after.training and not any(p.requires_grad for p in after.parameters())
    assert torch.equal(after(x).reconstruction, before(x).reconstruction) and torch.equal(after.tokenize(x), before.tokenize(x))
    assert torch.equal(after.decode(after.encode(x)), after(x).reconstruction)
    assert load_tokenizer(folder, image_size=32).tokenize(pictures(1, 32)).shape == (1, 64, 1)
    with pytest.raises(BadInput, match="was loaded for B x 3 x 16 x 16"):
        after.tokenize(pictures(1, 32))
    with pytest.raises(BadInput, match=r"quantizer.codebook has the shape 16 x 8; .* it is 32 x 8"):
        load_tokenizer(folder, quantizer={"codebook_size": 32})
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="not written by `save_pretrained`"):
        load_tokenizer(folder)


def test_what_is_drawn_while_loading_moves_nobodys_random_state(small: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_tokenizer(small, format="explore_vqvae")
    assert torch.equal(torch.rand(4), expected)


def test_a_run_of_ours_is_a_checkpoint(tmp_path: Path) -> None:
    from tiny import train_spec

    spec = train_spec({"name": "vq", "codebook_size": 16, "codebook_dim": 4, "init": "samples"})
    model, _ = build_model(spec)
    folder = tmp_path / "runs" / spec.train_id
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    with pytest.raises(BadInput, match=r"no final\.pt"):
        load_tokenizer(folder)
    torch.save({"train": {"model": model.state_dict(), "step": 1}}, folder / "checkpoints" / "final.pt")
    x = pictures()
    for given in (folder, folder / "checkpoints" / "final.pt"):
        loaded = load_tokenizer(given)
        assert torch.equal(loaded(x).reconstruction, model.eval()(x).reconstruction) and loaded.image_size == 16
    again = load_tokenizer(load_tokenizer(folder).save_pretrained(tmp_path / "again"))
    assert again.tokenizer.quantizer.get_extra_state() == model.quantizer.get_extra_state()


# -- the list ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalogue.checkpoints())
def test_every_listed_checkpoint_is_complete(name: str) -> None:
    entry = catalogue.load_checkpoint(name)
    assert entry.page.startswith("https://") and entry.license and entry.title
    assert entry.from_scratch is not False or entry.pretrained
    assert all(not one.url or one.url.startswith("https://") for one in entry.files)
    assert not catalogue.described(entry.format).get("files") or len(entry.files) == len(catalogue.described(entry.format)["files"])


@pytest.fixture
def listed(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A list of one checkpoint on a server of our own: its name, and the folder that is served."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "weights.pt").write_bytes(small.read_bytes())

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    entry = {"name": "mine", "title": "Mine f4", "format": "explore_vqvae", "image_size": 16, "license": "MIT",
             "page": "https://example.org/mine", "pretrained": ["CLIP"], "from_scratch": False,
             "files": [{"file": "weights.pt", "url": f"{address}/weights.pt",
                        "sha256": hashlib.sha256(small.read_bytes()).hexdigest()}]}
    folder = tmp_path / "list"
    folder.mkdir()
    (folder / "mine.yaml").write_text(yaml.safe_dump(entry))
    monkeypatch.setattr(catalogue, "FOLDER", folder)
    catalogue.load_checkpoint.cache_clear()
    for name in ("results", "reports", "runs", "cache", "weights"):
        monkeypatch.setenv(f"BENCH_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    yield address, served
    server.shutdown()
    catalogue.load_checkpoint.cache_clear()


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    if isinstance(done.exception, BadInput):
        assert code == 2, done.exception
        return str(done.exception)
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def test_prepare_fetches_once_and_checks_the_hash(listed: tuple[str, Path], tmp_path: Path) -> None:
    said = run("eval", "--checkpoint", "mine", "dataset.name=photos", "dataset.image_size=64", "measure.values=[psnr]", code=1)
    assert "not on this machine" in " ".join(said.split())
    run("prepare", "--checkpoint", "mine")
    path = tmp_path / "weights" / "mine" / "weights.pt"
    assert path.is_file()
    (listed[1] / "weights.pt").unlink()
    run("prepare", "--checkpoint", "mine")              # it is here: nothing is asked of the server
    assert load_tokenizer("mine").image_size == 16
    path.write_bytes(b"something else")
    assert "not the published file of mine" in run("prepare", "--checkpoint", "mine", code=2)
    path.unlink()
    assert "cannot be fetched" in run("prepare", "--checkpoint", "mine", code=2)
    (listed[1] / "weights.pt").write_bytes(b"another file")
    assert "is not the published file" in run("prepare", "--checkpoint", "mine", code=2)
    assert not list(path.parent.iterdir())
    assert "did you mean mine" in run("prepare", "--checkpoint", "mien", code=2)
    assert "say what for" in run("prepare", code=2)


def relisted(tmp_path: Path, **changes: object) -> None:
    """The fixture's entry with other fields; those of its one file, too."""
    path = tmp_path / "list" / "mine.yaml"
    entry = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        (entry["files"][0] if key in catalogue.CheckpointFile.model_fields else entry)[key] = value
    path.write_text(yaml.safe_dump(entry))
    catalogue.load_checkpoint.cache_clear()


def test_a_member_of_an_archive_is_unpacked_alone(listed: tuple[str, Path], small: Path, tmp_path: Path) -> None:
    address, served = listed
    relisted(tmp_path, url=f"{address}/mine.zip", member="models/model.ckpt")
    home = tmp_path / "weights" / "mine"

    def zipped(content: bytes, member: str = "models/model.ckpt") -> bytes:
        path = tmp_path / "made.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../escaped.txt", "it is not unpacked")
            archive.writestr("weights.pt", "it is not unpacked")
            archive.writestr(member, content)
        return path.read_bytes()

    whole = zipped(small.read_bytes())
    start = whole.index(b"models/model.ckpt") + len("models/model.ckpt")
    damaged = whole[:start] + bytes(64) + whole[start + 64:]
    for bad, said in ((zipped(b"another file"), "is not the published file"), (zipped(b"", "model.ckpt"), "there is no models/model.ckpt"),
                      (whole[:500], "cannot be read from it"), (damaged, "cannot be read from it")):
        (served / "mine.zip").write_bytes(bad)
        assert said in run("prepare", "--checkpoint", "mine", code=2)
        assert not list(home.iterdir())
    (served / "mine.zip").write_bytes(whole)
    with pytest.raises(catalogue.Absent, match="`bench prepare --checkpoint mine` fetches them"):
        load_tokenizer("mine")
    run("prepare", "--checkpoint", "mine")
    assert [p.name for p in home.iterdir()] == ["weights.pt"] and not list(tmp_path.rglob("escaped.txt"))
    assert load_tokenizer("mine").image_size == 16
    (home / "weights.pt").unlink()
    (served / "mine.zip").unlink()
    (home / "mine.zip").write_bytes(whole)              # put there by a person, who keeps it
    run("prepare", "--checkpoint", "mine")
    assert {p.name for p in home.iterdir()} == {"weights.pt", "mine.zip"}
    relisted(tmp_path, url=f"{address}/mine.tar")
    assert "its url must be that of a zip file" in run("prepare", "--checkpoint", "mine", code=2)


def test_urls_and_the_hub_are_fetched_once(listed: tuple[str, Path], small: Path, tmp_path: Path) -> None:
    address, served = listed
    ours = load_tokenizer(small, format="explore_vqvae", image_size=16)
    whole = served / "who" / "tokenizer" / "resolve" / "main"
    ours.save_pretrained(whole)
    (whole / "other.pt").write_bytes(small.read_bytes())
    index = served / "api" / "models" / "who" / "tokenizer"
    index.parent.mkdir(parents=True)
    index.write_text(json.dumps({"siblings": [{"rfilename": n} for n in ("README.md", "model.safetensors", "tokenizer.json")]}))
    x = pictures()
    loads = (partial(load_tokenizer, f"{address}/weights.pt", format="explore_vqvae", image_size=16),
             partial(load_tokenizer, "hf:who/tokenizer"),
             partial(load_tokenizer, "hf:who/tokenizer:other.pt", format="explore_vqvae", image_size=16),
             partial(load_tokenizer, (served / "weights.pt").as_uri(), format="explore_vqvae", image_size=16))
    for _ in range(2):
        for load in loads:
            assert torch.equal(load().tokenize(x), ours.tokenize(x))
        for path in (p for p in served.rglob("*") if p.is_file()):
            path.write_bytes(b"")                       # the second time nothing comes from there
    index.write_text(json.dumps({"siblings": [{"rfilename": "a.pt"}, {"rfilename": "b.ckpt"}]}))
    for given, said in (("hf:who/several", "does not say which files"), ("hf:who", "write hf:OWNER/NAME"),
                        (f"{address}/nothing.pt", "cannot be fetched"), ("nothing.pt", "there is no such file"),
                        ("mein", "did you mean mine")):
        with pytest.raises(BadInput, match=said):
            load_tokenizer(given, format="explore_vqvae")


# -- records and tables --------------------------------------------------------------------------------------------------


def test_a_suite_of_checkpoints_trains_nothing_and_shows_what_is_absent(listed: tuple[str, Path], small: Path,
                                                                        tmp_path: Path) -> None:
    suite, file = tmp_path / "published.yaml", tmp_path / "file.pt"
    torch.save(explore_state(seed=1), file)
    content = {
        "name": "published", "question": "Which one?",
        "base": {"dataset": {"name": "photos", "image_size": 64, "test_images": 6},
                 "measure": {"values": ["psnr", "usage", "perplexity"]}},
        "checkpoints": ["mine", {"checkpoint": str(file), "format": "explore-vqvae", "label": "a file"}],
        "report": {"tables": [{"name": "all", "rows": ["checkpoint"],
                               "columns": ["psnr", "usage", "layout.latent_size", "provenance.from_scratch", "provenance.weights"]}]},
    }
    suite.write_text(yaml.safe_dump(content))
    run("run", str(suite), "--launcher", "debug")
    table = (tmp_path / "reports" / "published" / "table.md").read_text()
    assert "the weights of mine are not on this machine; \\`bench prepare --checkpoint mine\\` fetches them" in table
    assert "| Mine f4 | –" in table and "[mine](<" not in table.split("a file")[0].split("|")[1]
    first = {r.label: r for r in read_records(tmp_path / "results" / "published" / "records.jsonl")}
    assert first["mine"].state == "skipped" and first["a file"].state == "done"

    run("prepare", "--checkpoint", "mine")
    run("eval", str(suite), "--launcher", "debug")
    records = {r.label: r for r in read_records(tmp_path / "results" / "published" / "records.jsonl")}
    assert records.keys() == {"mine", "a file"} and all(r.state == "done" for r in records.values())
    assert records["a file"] == first["a file"]         # it was not measured again
    assert all(v.number is not None for r in records.values() for v in r.values.values())
    assert "| Mine f4 | –" not in (tmp_path / "reports" / "published" / "table.md").read_text()
    assert records["mine"].provenance["pretrained"] == ["CLIP"] and records["mine"].provenance["from_scratch"] is False
    assert records["mine"].layout["latent_size"] == "16 × 16" and records["mine"].parameters["codebook"] == 16 * 8
    content["checkpoints"].append({"checkpoint": str(small), "format": "explore-vqvae", "label": "twin"})
    suite.write_text(yaml.safe_dump(content))
    assert "mine and twin are the same checkpoint" in run("eval", str(suite), "--launcher", "debug", code=2)


def test_eval_of_what_cannot_be_measured_ends_with_a_code(listed: tuple[str, Path], small: Path, tmp_path: Path) -> None:
    def evaluate(size: int, *words: str, code: int = 0) -> list[dict]:
        said = run("eval", "--checkpoint", str(small), *words, "dataset.name=photos", f"dataset.image_size={size}",
                   "dataset.test_images=2", "--json", code=code)
        return json.loads(said[said.index("[\n"):said.rindex("]") + 1])

    skipped, = evaluate(66, "measure.values=[psnr]", code=1)
    assert skipped["state"] == "skipped" and skipped["reason"]
    done, = evaluate(64, "measure.values=[psnr]")
    assert done["values"]["psnr"] > 0
    without, = evaluate(64, "measure.values=[lpips]", code=1)               # its network is not here; psnr was not asked for
    assert without["values"]["lpips"] is None and without["values"]["psnr"] == done["values"]["psnr"]
    assert len(evaluate(64, "measure.values=[psnr,lpips]")) == 1            # one of the two is something


def test_a_listed_file_is_known_by_its_hash(listed: tuple[str, Path], small: Path, tmp_path: Path) -> None:
    address, _ = listed
    copied = tmp_path / "under another name.bin"
    copied.write_bytes(small.read_bytes())
    link = f"{address}/weights.pt"
    for given, expected in ((copied, link), (copied.as_uri(), link), (f"{address}/./weights.pt", f"{address}/./weights.pt")):
        found = catalogue.locate(str(given), places(tmp_path))
        assert (found.label, found.link, found.entry.title) == ("mine", expected, "Mine f4")
        assert load_tokenizer(given).image_size == 16           # nobody says the format, or for which size
    run("eval", "--checkpoint", str(copied), "dataset.name=photos", "dataset.image_size=64", "dataset.test_images=2",
        "measure.values=[psnr]")
    record, = read_records(tmp_path / "results" / "checkpoints" / "records.jsonl")
    assert record.provenance["weights"] == link and record.provenance["license"] == "MIT" and record.label == "mine"
    copied.write_bytes(b"another file")
    assert catalogue.locate(str(copied), places(tmp_path)).entry is None
    relisted(tmp_path, sha256="")                               # nobody knows its hash: nothing is recognised
    assert catalogue.locate(str(small), places(tmp_path)).entry is None


def test_a_folder_of_several_listed_files_is_known_by_their_hashes(listed: tuple[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    files = []
    for name in ("one.pt", "two.pt"):
        (folder / name).write_bytes(name.encode())
        files.append({"file": name, "sha256": hashlib.sha256(name.encode()).hexdigest()})
    relisted(tmp_path, files=files)
    assert catalogue.locate(str(folder), places(tmp_path)).label == "mine"
    assert catalogue.locate(str(folder / "one.pt"), places(tmp_path)).entry is None     # half of it is not it
    (folder / "two.pt").write_bytes(b"two")
    assert catalogue.locate(str(folder), places(tmp_path)).label == "parts"


def test_the_list_says_what_is_here(listed: tuple[str, Path], tmp_path: Path) -> None:
    def here() -> str:
        one, = json.loads(run("ls", "checkpoints", "--json"))["checkpoints"]
        assert one == {"name": "mine", "summary": "Mine f4", "format": "explore_vqvae", "image_size": 16, "license": "MIT",
                       "here": one["here"]}
        return one["here"]

    assert here() == "no"
    run("prepare", "--checkpoint", "mine")
    assert here() == "yes"
    (tmp_path / "weights" / "mine" / "weights.pt").write_bytes(b"x")
    assert here() == "another file"
    relisted(tmp_path, url="", file="other.pt")
    assert here() == "by hand"
    head, line, _ = run("ls", "checkpoints").splitlines()
    assert head.split() == ["name", "title", "format", "pixels", "licence", "here"]
    assert [line[head.index(word):].split("  ")[0] for word in head.split()] == ["mine", "Mine f4", "explore_vqvae", "16", "MIT", "by hand"]


def table_of(**changes: object) -> TableSpec:
    return TableSpec(**{"name": "t", "rows": ("checkpoint",), "columns": ("layout.codebook_size",)} | changes)


def shown(name: str, **changes: object) -> Record:
    """A record of a checkpoint as a report reads it."""
    return record(f"id {name}", label=name, fields={"checkpoint.name": name}, components={"checkpoint": Component(name=name, title=f"The {name}", source=None)}, **changes)


def test_what_a_suite_lists_keeps_its_order_and_absent_ones_share_a_footnote(listed: tuple[str, Path], small: Path,
                                                                               tmp_path: Path) -> None:
    entry = yaml.safe_load((tmp_path / "list" / "mine.yaml").read_text())
    for name, url in (("zebra", "https://example.org/z.pt"), ("apple", "https://example.org/a.pt"), ("hidden", "")):
        (tmp_path / "list" / f"{name}.yaml").write_text(yaml.safe_dump(
            entry | {"name": name, "title": f"{name} f4", "files": [{"file": "weights.pt", "url": url}]}))
    catalogue.load_checkpoint.cache_clear()
    other = tmp_path / "alone.pt"
    torch.save(explore_state(seed=1), other)
    suite = tmp_path / "listed.yaml"
    content = {"name": "listed", "question": "Which?", "base": {
        "dataset": {"name": "photos", "image_size": 64, "test_images": 2}, "measure": {"values": ["psnr", "ssim"]}},
        "checkpoints": ["zebra", {"checkpoint": str(other), "format": "explore-vqvae"}, "hidden", "apple", "mine"],
        "report": {"tables": [{"name": "t", "rows": ["checkpoint"], "columns": ["psnr", "ssim", "layout.codebook_size"]}]}}
    suite.write_text(yaml.safe_dump(content))
    run("prepare", "--checkpoint", "mine")
    run("run", str(suite), "--launcher", "debug")
    table = (tmp_path / "reports" / "listed" / "table.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["zebra f4", "alone", "hidden f4", "apple f4", "Mine f4"]
    assert "<sup>a</sup> skipped: weights that are not on this machine; \\`bench prepare --checkpoint NAME\\` fetches zebra, " \
           "apple, and says where to get hidden  \n" in table
    assert table.count("<sup>a</sup>") == 1 + 3 * 3 and "<sup>b</sup>" not in table
    report = run("report", "listed")
    assert [report.index(name) for name in ("zebra f4", "alone", "hidden f4")] == sorted(
        report.index(name) for name in ("zebra f4", "alone", "hidden f4"))


def test_rows_may_be_some_alone_and_a_heading_may_have_a_footnote() -> None:
    records = [shown(name, layout={"codebook_size": size}) for name, size in (("a", 16384), ("b", "16,384 × 2"), ("c", 8))]
    spec = table_of(rows=({"key": "checkpoint", "only": ("c", "The a", "nobody")},),
                    columns=({"key": "layout.codebook_size", "title": "N", "note": "of a codebook"},))
    table = build_table(records, spec)
    assert [(row.headers[0].text, row.cells[0].text) for row in table.rows] == [("The c", "8"), ("The a", "16,384")]
    assert "| checkpoint | N<sup>a</sup> |" in to_markdown(table) and "<sup>a</sup> of a codebook" in to_markdown(table)
    assert '<th scope="col">N<sup><a href="#t-a">a</a></sup></th>' in to_html(table) and 'id="t-a"><sup>a</sup> of a codebook' in to_html(table)
    assert r"checkpoint & N\textsuperscript{a} \\" in to_latex(table) and r"\textsuperscript{a} of a codebook" in to_latex(table)
    printed = io.StringIO()
    Console(width=80, file=printed).print(terminal_table(table))
    assert "N a" in printed.getvalue() and "a of a codebook" in printed.getvalue()
    nothing = build_table(records, table_of(rows=({"key": "checkpoint", "only": ("nobody",)},)))
    Console(width=80, file=printed).print(terminal_table(nothing))
    assert not nothing.rows and nothing.notes == ("No run has a record yet.",)
    assert all("No run has a record yet" in form(nothing) for form in (to_markdown, to_html, to_latex))


def test_what_is_not_stated_has_no_grid_or_no_codes_is_said_so() -> None:
    keys = ("provenance.from_scratch", "layout.codebook_size", "layout.bits_per_image", "layout.downsampling")
    continuous = {"vocab_sizes": [], "bits_per_image": None, "codebook_size": None, "downsampling": 8.0}
    sequence = {"vocab_sizes": [4096], "bits_per_image": 768, "codebook_size": 4096, "downsampling": None}
    records = [shown("a", provenance={"from_scratch": None}, layout=continuous),
               shown("b", provenance={"from_scratch": False}, layout=sequence), shown("c", layout={"vocab_sizes": [8]})]
    table = build_table(records, table_of(columns=keys))
    notes = dict(table.footnotes)
    told = [[[cell.text, *(notes[m] for m in cell.notes)] for cell in row.cells] for row in table.rows]
    assert told == [[["–", "not stated by those who published it"], ["continuous"], ["continuous"], ["8"]],
                    [["×"], ["4,096"], ["768"], ["–", "its tokens have no grid"]],
                    [["–", "not recorded"]] * 4]


@pytest.mark.parametrize(("tokenizer", "expected"), [
    ({"name": "fqgan"}, ("16 × 16 × 2", "16,384 × 2", 8, 16)),          # as FQGAN's table: f 16, N 16384x2, d 8
    ({"name": "optvq"}, ("16 × 16 × 4", 16384, 64, 16)),                # as OptVQ's: 16x16x4, of one table
    ({"name": "rqvae"}, ("8 × 8 × 4", 16384, 256, 32)),
    ({"name": "llamagen"}, ("16 × 16", 16384, 8, 16)),
    ({"name": "vqvae2"}, ("5120", "512 × 2", 64, 4)),
    ({"name": "titok"}, ("64", 4096, 12, None)),
    ({"name": "open_magvit2"}, ("16 × 16", 262144, 18, 16)),
    ({"name": "taesd"}, ("32 × 32", None, 4, 8)),
])
def test_layouts_are_described_in_the_words_of_published_tables(tokenizer: dict, expected: tuple) -> None:
    spec = bind("tokenizer", tokenizer, ("tokenizer",), fail)
    with torch.device("meta"):
        layout, _ = described(spec.partial()(256), 256)
    assert tuple(layout[key] for key in ("latent_size", "codebook_size", "code_dim", "downsampling")) == expected


def test_the_published_suite_shows_each_paper_s_rows() -> None:
    suite = Suite.load(ROOT / "suites" / "imagenet256_published.yaml")
    listed = [entry.checkpoint for entry in suite.checkpoints()]
    tables = {table.name: table for table in suite.frame.report.tables}
    for name in ("optvq_form", "fqgan_form"):
        key, = tables[name].row_keys()
        assert key.only and set(key.only) <= set(listed)
    assert list(tables["published"].row_keys()[0].order) == listed
    note, = (column.note for column in tables["optvq_form"].column_keys() if column.key == "layout.codebook_size")
    assert "#Tokens" in note and all("#Tokens" not in (table.caption or "") for table in tables.values())


def test_eval_takes_keywords_protocol_and_name(listed: tuple[str, Path], small: Path, tmp_path: Path) -> None:
    base = ("eval", "--checkpoint", str(small), "--format", "explore-vqvae", "dataset.name=photos", "dataset.image_size=64",
            "dataset.test_images=6", "--batch-size", "4", "--json")
    said = json.loads(run(*base, "measure.protocol=llamagen-256", "measure.values=[psnr]", "--name", "mine"))
    assert said[0]["state"] == "done" and said[0]["values"]["psnr"] > 3
    again = json.loads(run(*base, "measure.values=[psnr,usage]", "tokenizer.quantizer.normalize=both", "--name", "mine"))
    assert again[0]["train_id"] != said[0]["train_id"]
    records = read_records(tmp_path / "results" / "mine" / "records.jsonl")
    assert len(records) == 2 and len({r.fields["tokenizer.quantizer.normalize"] for r in records}) == 2
    assert "PSNR" in run("report", "mine") and (tmp_path / "reports" / "mine" / "table.md").is_file()
    for words, told in ((("eval",), "say which suite, or which checkpoint"),
                        (("eval", "--checkpoint", str(small)), "on which images"),
                        (("eval", "quickstart", "--format", "taesd"), "go with --checkpoint"),
                        ((*base, "tokenizer.quantizer.codebok_size=3"), "did you mean codebook_size"),
                        ((*base, "measure.protocol=ours-9"), "did you mean ours-")):
        assert told in run(*words, code=2)


def test_convert_writes_what_loads_without_more_words(small: Path, tmp_path: Path) -> None:
    run("convert", str(small), str(tmp_path / "out"), "tokenizer.quantizer.normalize=both", "--format", "explore-vqvae",
        "--image-size", "16")
    ours = load_tokenizer(tmp_path / "out")
    assert ours.image_size == 16 and ours.model.kwargs["quantizer"].kwargs["normalize"] == "both"
    assert "only settings of the tokenizer" in run("convert", str(small), str(tmp_path / "b"), "train.steps=3", code=2)


def test_the_weights_column_is_a_link_where_a_format_has_links(listed: tuple[str, Path], tmp_path: Path) -> None:
    run("prepare", "--checkpoint", "mine")
    run("eval", "--checkpoint", "mine", "dataset.name=photos", "dataset.image_size=64", "dataset.test_images=2",
        "measure.values=[psnr]")
    record, = read_records(tmp_path / "results" / "checkpoints" / "records.jsonl")
    link = "https://example.org/a%20b/[x](y)/weights.pt"
    record = record.model_copy(update={"provenance": record.provenance | {"weights": link}})
    table = build_table([record], checkpoint_report([record]).tables[0])
    assert "[weights.pt](<https://example.org/a%20b/%5Bx%5D(y)/weights.pt>)" in to_markdown(table)
    assert f'<a href="{link}">weights.pt</a>' in to_html(table)
    assert "weights.pt" in to_latex(table) and link in to_csv(table)


def test_the_list_and_the_plan_load_no_torch(tmp_path: Path) -> None:
    code = "import sys, bench.__main__, bench.cli_checkpoints, bench.catalogue; bench.catalogue.load_checkpoint('taef2'); " \
           "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_what_a_suite_says_of_checkpoints_is_checked_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("name: wrong\nquestion: Is it?\nbase:\n  dataset: {name: photos, image_size: 64}\n  measure: {values: [psnr]}\n"
                    "checkpoints:\n  - taef3\n  - {checkpoint: taef2, format: taesx}\n  - {name: taef2}\n")
    with pytest.raises(BadInput) as error:
        Suite.load(file).expand(places(tmp_path))
    lines = str(error.value).splitlines()
    assert f"{file}:7" in lines[0] and "did you mean taef2" in lines[0]
    assert f"{file}:8" in lines[1] and "did you mean taesd" in lines[1]
    assert all(f"{file}:9" in line for line in lines[2:]) and len(lines) >= 3


# -- the trained ones ----------------------------------------------------------------------------------------------------


@trained
def test_eval_of_the_trained_vqvae_gives_the_numbers_of_its_data_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """imagenet-sample, 128 pixels, all 120 test images: 25.67 dB, 281 codes, perplexity 193.7."""
    for name in ("results", "reports", "runs", "cache"):
        monkeypatch.setenv(f"BENCH_{name.upper()}", str(tmp_path / name))
    folder = tmp_path / "sample" / "test"
    folder.mkdir(parents=True)
    with tarfile.open(SHARED / "imagenet-sample" / "test-00.tar") as tar:
        for member in (m for m in tar if m.isfile()):
            (folder / Path(member.name).name).write_bytes(tar.extractfile(member).read())
    monkeypatch.setenv("BENCH_WEIGHTS", str(MODELS))
    said, = json.loads(run(
        "eval", "--checkpoint", "vqvae-explore", "dataset.name=image_folder", "dataset.folder=sample", "dataset.image_size=128",
        "measure.values=[psnr,usage,perplexity]", "--data", str(tmp_path), "--batch-size", "8", "--json"))
    assert said["label"] == "vqvae-explore"
    assert said["values"]["psnr"] == pytest.approx(25.67, abs=0.01)
    assert said["values"]["usage"] * 512 == pytest.approx(281, abs=1e-6)
    assert said["values"]["perplexity"] == pytest.approx(193.7, abs=0.1)


@trained
def test_taef2_is_the_published_network() -> None:
    """Against its layers called one by one, as github.com/madebyollin/taesd arranges them."""
    parts = {side: {k: v.float() for k, v in torch.load(TAEF2 / f"taef2_{side}.pth", weights_only=True, map_location="cpu").items()}
             for side in ("encoder", "decoder")}

    def layer(h: Tensor, state: dict[str, Tensor], i: int, stride: int = 1) -> Tensor:
        if f"{i}.conv.0.weight" not in state:
            return F.conv2d(h, state[f"{i}.weight"], state.get(f"{i}.bias"), stride=stride, padding=1)
        if f"{i}.pool.0.weight" in state:
            wide = F.conv2d(h, state[f"{i}.pool.0.weight"])
            wide = F.relu(F.group_norm(wide, 4, state[f"{i}.pool.1.weight"], state[f"{i}.pool.1.bias"]))
            h = h + F.conv2d(wide, state[f"{i}.pool.3.weight"])
        inner = h
        for j in (0, 2, 4):
            inner = F.conv2d(inner, state[f"{i}.conv.{j}.weight"], state[f"{i}.conv.{j}.bias"], padding=1)
            inner = F.relu(inner) if j < 4 else inner
        return F.relu(inner + h)

    x = pictures(1, 32)
    h = (x + 1) / 2
    for i in range(15):
        h = layer(h, parts["encoder"], i, stride=2 if i in (2, 6, 10) else 1)
    y = F.relu(layer(torch.tanh(h / 3) * 3, parts["decoder"], 1))
    for i in range(3, 20):
        y = F.interpolate(y, scale_factor=2.0) if i in (6, 11, 16) else layer(y, parts["decoder"], i)
    ours = load_tokenizer(TAEF2, format="taesd", image_size=32)
    torch.testing.assert_close(ours.encode(x), h.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours(x).reconstruction, 2 * y - 1, rtol=0, atol=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == sum(v.numel() for s in parts.values() for v in s.values())
    with pytest.raises(BadInput, match="continuous tokenizer"):
        ours.tokenize(x)

"""What a user can get wrong: exit code 2 and one sentence that says what and where; nothing is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
SUITE = """\
name: wrong
question: Is it refused?
base:
  dataset: {name: photos, image_size: 16, train_images: 64, test_images: 32}
  tokenizer:
    name: vqvae
    hidden: 8
    quantizer: {name: vq, codebook_size: 16, codebook_dim: 4}
  objective: {name: reconstruction}
  optimizers:
    tokenizer: {name: adam, lr: 4e-4}
  train: {steps: 2, batch_size: 8}
  measure: {values: [psnr]}
"""
PHOTOS = "{name: photos, image_size: 16, train_images: 64, test_images: 32}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine: no data, no weights, no settings of the user's."""
    for name in [n for n in os.environ if n.startswith("BENCH_")]:
        monkeypatch.delenv(name)
    for name, folder in {"BENCH_CACHE": "cache", "TORCH_HOME": "torch", "XDG_CONFIG_HOME": "config"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(
    home: Path, capsys: pytest.CaptureFixture[str], text: str, *arguments: str,
) -> tuple[int, list[str]]:
    """(exit code, lines on stderr) of `bench run`."""
    (home / "wrong.yaml").write_text(text)
    sys.argv = ["bench", "run", "wrong.yaml", "--launcher", "debug", *arguments]
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    said = capsys.readouterr()
    return code, [line.replace(f"{home}/", "") for line in said.err.splitlines()]


def changed(old: str, new: str) -> str:
    assert SUITE.count(old) == 1
    return SUITE.replace(old, new)


def pictures(folder: Path, count: int = 30) -> None:
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{i:03d}.jpg")


FOLDER = changed(PHOTOS, "{name: image_folder, folder: pets, image_size: 16}")

SIMPLE = {
    "unknown key": (changed("hidden: 8", "hiden: 8"), (),
                    "wrong.yaml:7: tokenizer.hiden = 8: vqvae has no such key; did you mean hidden?"),
    "wrong type": (changed("hidden: 8", "hidden: wide"), (),
                   'wrong.yaml:7: tokenizer.hidden = "wide": expected int'),
    "impossible size": (changed("image_size: 16", "image_size: 18"), (),
                        "wrong.yaml:4: dataset.image_size = 18: vqvae downsamples by 4, so dataset.image_"
                        "size must be a multiple of 4, got 18"),
    "duplicate key": (changed("    hidden: 8\n", "    hidden: 8\n    hidden: 8\n"), (),
                      "wrong.yaml:8: base.tokenizer.hidden: the key is written twice (first in line 7); "
                      "keep one"),
    "unknown tokenizer": (changed("name: vqvae", "name: vqvea"), (),
                          "wrong.yaml:6: tokenizer.name = \"vqvea\": there is no tokenizer 'vqvea'; "
                          "did you mean vqvae?"),
    "negative steps": (changed("steps: 2", "steps: -2"), (),
                       "wrong.yaml:12: train.steps = -2: input should be greater than 0"),
    "override": (SUITE, ("train.stepz=3",),
                 "command line: train.stepz = 3: no such key; did you mean steps?"),
    "unknown tracker": (SUITE, ("--track", "tensorbord"),
                        "there is no tracker 'tensorbord'; did you mean tensorboard?"),
    "unknown launcher": (SUITE, ("--launcher", "sluurm"),
                         "there is no launcher 'sluurm'; known: auto, debug, local, slurm"),
}


@pytest.mark.parametrize("kind", SIMPLE)
def test_what_is_wrong_in_a_suite_is_one_sentence(
    kind: str, home: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    text, arguments, sentence = SIMPLE[kind]
    assert bench(home, capsys, text, *arguments) == (2, [sentence])
    assert not list(home.rglob("*.pt"))


def test_missing_data_say_where_they_should_be(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    celeba = changed(PHOTOS, "{name: celeba, image_size: 64}")
    code, (said,) = bench(home, capsys, celeba)
    assert code == 2 and "--data" in said and "celeba/img_align_celeba/" in said
    (home / "data").mkdir()
    code, (said,) = bench(home, capsys, celeba, "--data", "data")
    assert code == 2 and "data/celeba/img_align_celeba" in said and "bench prepare" in said


@pytest.mark.parametrize("damage", ["truncated", "no picture"])
def test_a_corrupt_picture_is_named_and_can_be_left_out(
    damage: str, home: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    pictures(home / "data" / "pets")
    broken = home / "data/pets/train/007.jpg"
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"not a picture")
    code, (said,) = bench(home, capsys, FOLDER, "--data", "data")
    assert code == 2 and "data/pets/train/007.jpg" in said and "--leave-out-unreadable" in said
    assert not list(home.rglob("*.pt"))
    code, _ = bench(home, capsys, FOLDER, "--data", "data", "--leave-out-unreadable")
    assert code == 0
    record, = [line for line in (home / "results/wrong/records.jsonl").read_text().splitlines()]
    assert '"left_out":["train/007.jpg"]' in record or '"left_out":["007.jpg"]' in record


def test_missing_weights_are_refused_before_training(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (said,) = bench(home, capsys, changed("[psnr]", "[psnr, lpips, rfid]"))
    assert code == 2
    for word in ("alexnet", "inception", "BENCH_WEIGHTS", "bench prepare", "measure.values", "lpips", "rfid"):
        assert word in said, word
    assert not list(home.rglob("*.pt"))
    assert bench(home, capsys, changed("[psnr]", "[psnr, lpips]"), "measure.values=[psnr]")[0] == 0


@pytest.mark.parametrize("option", ["--results", "--runs", "--reports"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    option: str, home: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    (home / "file").write_text("in the way")
    code, (said,) = bench(home, capsys, SUITE, option, "file/below")
    assert code == 2 and said.startswith("file/below: cannot be written (") and option in said
    assert not list(home.rglob("*.pt"))


def test_a_cache_that_cannot_be_written_is_refused(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    (home / "file").write_text("in the way")
    monkeypatch.setenv("BENCH_CACHE", str(home / "file" / "cache"))
    code, (said,) = bench(home, capsys, SUITE)
    assert code == 2 and "file/cache: cannot be written" in said and "BENCH_CACHE" in said


def test_a_suite_that_is_not_there_names_the_nearest(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "wrong.yaml").write_text(SUITE)
    for command in ("check", "plan", "run", "status", "report"):
        sys.argv = ["bench", command, "wrnog.yaml"]
        with pytest.raises(SystemExit) as error:
            main()
        assert error.value.code == 2
        assert capsys.readouterr().err == "wrnog.yaml: no such suite file; did you mean wrong?\n"


def test_a_report_without_records_says_how_to_make_them(
    home: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    (home / "wrong.yaml").write_text(SUITE)
    sys.argv = ["bench", "report", "wrong.yaml"]
    with pytest.raises(SystemExit) as error:
        main()
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert "there are no records of wrong yet; `bench run wrong.yaml` makes them" in said


def test_the_command_itself_exits_with_2_and_no_traceback(home: Path) -> None:
    (home / "wrong.yaml").write_text(changed("name: vqvae", "name: vqvea"))
    done = subprocess.run([sys.executable, "-m", "bench", "run", "wrong.yaml"], cwd=home, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == SIMPLE["unknown tokenizer"][2] + "\n"


def test_a_run_that_fails_stops_no_other_and_exits_with_1(
    home: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    text = changed("lr: 4e-4", "lr: 1e-3") + "axes: {optimizers.tokenizer.lr: [1e30, 1e-3]}\n"
    code, said = bench(home, capsys, text, "train.steps=6", "train.log_every=1")
    assert code == 1
    assert any("was not finite at step" in line for line in said)
    states = sorted(part for line in (home / "results/wrong/records.jsonl").read_text().splitlines()
                    for part in ("failed", "done") if f'"state":"{part}"' in line)
    assert states == ["done", "failed"]

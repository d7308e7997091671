"""`bench explain`: every metric says what it is, what it is not, and how each protocol measures it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench.errors import BadInput
from bench.explain import explain, shown
from bench.protocol import load_protocol, protocols
from bench.registry import available, resolve

ROOT = Path(__file__).resolve().parents[1]


def printed(word: str) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(shown(explain(word)))
    return " ".join(capture.get().split())


@pytest.mark.parametrize("name", available("metric"))
def test_every_metric_has_a_definition_and_caveats(name: str) -> None:
    said = explain(name)
    metric = resolve("metric", name)
    assert said["title"] == metric.title and said["direction"] == metric.direction and said["unit"] == metric.unit
    assert len(said["definition"].split()) > 12, "a definition of some words: formula, units, source"
    assert said["caveats"] == list(metric.caveats) and said["caveats"], "what is it not comparable with?"
    assert all(sentence.rstrip().endswith(".") for sentence in said["caveats"])
    text = printed(name)
    assert metric.title in text and " ".join(said["caveats"][0].split()) in text


def test_it_says_how_dialects_differ() -> None:
    uses = {use["protocol"]: use for use in explain("ssim")["protocols"]}
    assert uses["llamagen"]["keywords"]["data_range"] == 510.0 and uses["ours-1"]["keywords"]["data_range"] == 255.0
    assert uses["seed-voken"]["prepare"] == {"round": "truncate"}
    one = explain("ssim@llamagen")["protocols"]
    assert [use["protocol"] for use in one] == ["llamagen"]
    assert "data range 510" in printed("ssim@llamagen") and "ssim@optvq" not in printed("ssim@llamagen")
    assert explain("usage_window")["metric"] == "usage"             # a column's name, too


@pytest.mark.parametrize("name", protocols())
def test_every_protocol_is_explained(name: str) -> None:
    said = explain(name)
    assert said["values"].keys() == load_protocol(name).values.keys()
    assert " ".join(said["description"].split()) in printed(name)


def test_unknown_words_name_the_nearest() -> None:
    for word, nearest in (("psnrr", "psnr"), ("lamagen", "llamagen"), ("ssim@lamagen", "llamagen"), ("sim@llamagen", "ssim")):
        with pytest.raises(BadInput, match=f"did you mean {nearest}"):
            explain(word)
    with pytest.raises(BadInput, match="there is no protocol ''"):
        explain("ssim@")


def test_as_a_command_without_torch() -> None:
    code = ("import sys; sys.argv = ['bench', 'explain', 'ssim@llamagen', '--json']\n"
            "from bench.__main__ import main\n"
            "try: main()\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "assert 'torch' not in sys.modules\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["protocols"][0]["keywords"]["data_range"] == 510.0
    done = subprocess.run([sys.executable, "-m", "bench", "explain", "nothing"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "there is no metric or protocol 'nothing'" in done.stderr

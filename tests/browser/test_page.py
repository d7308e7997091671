"""index.html of a suite, in a real browser: no errors, no requests, and it shows what the records hold."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from report_records import record

from bench.collect import report_spec
from bench.places import Places
from bench.report.page import command, data_url, render_page, script_json
from bench.report.render import build_tables
from bench.report.spec import ReportSpec
from bench.results import Record, read_records

ROOT = Path(__file__).resolve().parents[2]
SIDE, IMAGES, TOKENS = 16, 12, 16
HOSTILE = ['<script>document.title="owned"</script>', "\"'><img src=x onerror=alert(1)>", "ü😀" * 20, "x" * 300,
           "</script><b>bold</b>", "a\u2028b"]


def samples(runs: Path, made: Record, noise: int, seed: int) -> None:
    """Pictures, codes and the PSNR of each image, as a run keeps them; image i is grey 10 + 20 i."""
    originals = np.broadcast_to((10 + 20 * np.arange(IMAGES, dtype=np.uint8))[:, None, None, None], (IMAGES, SIDE, SIDE, 3))
    reconstructions = originals.astype(int) + noise
    codes = np.random.default_rng(seed).integers(0, 4, (IMAGES, TOKENS, 1), np.int32)
    folder = runs / made.train_id
    (folder / "images").mkdir(parents=True)
    (folder / "values").mkdir()
    np.savez_compressed(folder / "images/samples.npz", originals=originals, reconstructions=reconstructions.astype(np.uint8),
                        codes=codes)
    value_id = next(i for i, v in made.values.items() if v.name == "psnr")
    numbers = np.random.default_rng(seed).permutation(IMAGES).astype(float)
    pq.write_table(pa.table({"image": np.arange(IMAGES), "value": numbers}), folder / f"values/{value_id}.parquet")


def suite(tmp_path: Path, labels: list[str], name: str = "suite") -> tuple[Path, list[Record]]:
    runs = [record(f"{i:012x}", {"psnr": 20.0 + (2 * i + 1) % len(labels), "usage": i / 10}, size=2 ** (5 + i), label=label,
                   fields={"tokenizer.note": label}, layout={"num_tokens": TOKENS, "vocab_sizes": [4], "grids": [[4, 4]],
                                                             "bits_per_image": 32.0})
            for i, label in enumerate(labels)]
    for i, run in enumerate(runs):
        samples(tmp_path / "runs", run, noise=3 + i, seed=i)
    rows = ["tokenizer.quantizer.codebook_size", "tokenizer.note"]
    spec = ReportSpec.model_validate({"tables": [{"name": "main", "title": f"Table of {name}", "rows": rows,
                                                  "columns": ["psnr", "usage"]}]})
    tables = build_tables(name, runs, spec)
    return render_page(name, f"Why {name}?", tables, runs, tmp_path / "runs", tmp_path / "reports"), runs


@pytest.fixture
def opened(browser: Any) -> Any:
    """Opens a page; afterwards it must have said nothing and asked for nothing."""
    contexts, said = [], []

    def open_page(path: Path, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith(("data:", path.as_uri())) else None)
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready=true]", state="attached", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def column(page: Any, index: int) -> list[str]:
    return page.eval_on_selector_all("figure#main tbody tr:not([hidden])",
                                     f"rows => rows.map(row => row.cells[{index}].textContent)")


def test_columns_sort_filter_and_hide(tmp_path: Path, opened: Any) -> None:
    path, runs = suite(tmp_path, ["alpha", "beta", "gamma"])
    page = opened(path)
    heading = page.locator("figure#main thead th button", has_text="PSNR")
    heading.click()
    numbers = [v.number for r in runs for v in r.values.values() if v.name == "psnr"]
    shown = [float(text.split("≈")[0]) for text in column(page, 2)]
    assert shown == sorted(numbers) != numbers
    heading.click()
    assert [float(text) for text in column(page, 2)] == sorted(numbers, reverse=True)
    assert page.get_attribute("figure#main thead th:nth-child(3)", "aria-sort") == "descending"
    page.fill("input[type=search]", "gamma")
    assert column(page, 1) == ["gamma"]
    page.fill("input[type=search]", "")
    page.click("text=Columns")
    page.uncheck(".menu label:has-text('Usage') input")
    assert not page.is_visible("figure#main thead th:nth-child(4)")


def test_the_browser_shows_the_image_that_its_order_says(tmp_path: Path, opened: Any) -> None:
    path, runs = suite(tmp_path, ["alpha", "beta"])
    page = opened(path)
    numbers = []
    for run in runs:
        value_id = next(i for i, v in run.values.items() if v.name == "psnr")
        numbers.append(np.array(pq.read_table(tmp_path / "runs" / run.train_id / f"values/{value_id}.parquet")["value"]))

    def first() -> tuple[int, list[int], list[int]]:
        image = int(page.get_attribute(".pictures .row", "data-image"))
        grey = "canvas => [...canvas.getContext('2d').getImageData(5, 5, 1, 1).data].slice(0, 3)"
        tiles = page.locator(".pictures .row").first.locator("canvas")
        return image, tiles.nth(0).evaluate(grey), tiles.nth(2).evaluate(grey)

    assert first() == (0, [10] * 3, [12] * 3)                       # noise 3, four times
    for order, best in (("worst", numbers[0].argmin()), ("best", numbers[0].argmax()),
                        ("beats", (numbers[0] - numbers[1]).argmax())):
        page.locator("#browser label:has-text('Order') select").select_option(order)
        image, original, _ = first()
        assert image == best and original == [10 + 20 * best] * 3


def test_a_token_tells_its_code_and_where_else_it_is(tmp_path: Path, opened: Any) -> None:
    path, runs = suite(tmp_path, ["alpha", "beta"])
    page = opened(path)
    codes = np.load(tmp_path / "runs" / runs[0].train_id / "images/samples.npz")["codes"][..., 0]
    page.locator(".pictures .row").first.locator("canvas[tabindex]").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    said = page.inner_text(".token-line")
    code = codes[0, 5]
    count, where = (codes == code).sum(), (codes == code).any(1).sum()
    assert f"code {code} of 4, row 1, column 1; {count} of {codes.size} tokens, in {where} of {IMAGES} images" in said


def test_the_page_of_a_real_suite_opens_and_each_run_draws_its_curves(tmp_path: Path, opened: Any) -> None:
    places = Places.find(results=ROOT / "results", reports=tmp_path)
    name, question, spec = report_spec("celeba_quantizers", places)
    home = ROOT / "results" / name
    runs, sanity = read_records(home / "records.jsonl"), read_records(home / "sanity.jsonl")
    tables = build_tables(name, runs, spec, sanity=sanity)
    page = opened(render_page(name, question, tables, runs, tmp_path / "runs", tmp_path, curves=home / "curves.parquet"))
    assert page.locator("figure tbody tr").count() == len(runs) + len(sanity) == 25
    page.get_by_role("button", name="PSNR").click()
    page.get_by_role("button", name="PSNR").click()                 # falling
    assert page.locator("figure tbody tr").first.locator("th").first.inner_text() == "OptVQ"
    section = page.locator("#runs details").first
    section.locator("summary").click()
    section.locator(".sparks svg").nth(4).wait_for()                # drawn when the toggle has been heard of: at least five
    assert page.locator("#curves svg polyline").count() >= len(runs)


def test_hostile_names_are_shown_as_they_are(tmp_path: Path, opened: Any) -> None:
    path, _ = suite(tmp_path, HOSTILE, name=HOSTILE[0])
    text = path.read_text(encoding="utf-8")
    assert "<script>document" not in text and "<img src=x" not in text
    page = opened(path)
    assert page.title() == HOSTILE[0]
    assert page.inner_text("h1") == HOSTILE[0]
    summaries = page.eval_on_selector_all("#runs summary", "all => all.map(s => s.firstChild.textContent.trim())")
    assert {s.replace("\u2028", " ") for s in summaries} == {" ".join(h.split()) for h in HOSTILE}


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(tmp_path: Path, opened: Any, width: int, scheme: str) -> None:
    path, _ = suite(tmp_path, HOSTILE)
    page = opened(path, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    picture = Image.open(io.BytesIO(page.screenshot())).convert("L")
    assert (np.asarray(picture).mean() > 128) == (scheme == "light")


def test_json_stands_in_a_script_element_whatever_it_holds() -> None:
    text = script_json({"a": HOSTILE})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": HOSTILE}
    assert data_url(b"\x00\xff", "image/png") == "data:image/png;base64,AP8="


def test_the_command_names_the_overrides_and_the_run() -> None:
    made = command(record("abc"), "suite", {"file": "suites/one two.yaml", "overrides": {"train.steps": 5, "dataset.name": "a b"}})
    assert made == "bench run 'one two' 'dataset.name=a b' train.steps=5 --only abc"

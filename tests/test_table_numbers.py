"""Numbers in tables: protocols never mixed unseen, published values, yardsticks, doubts, and what is chance."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_records import CELEBA, record, value

from bench.errors import BadInput
from bench.protocol import wanted
from bench.published import Published
from bench.report.columns import format_number
from bench.report.formats import terminal_table, to_csv, to_html, to_latex, to_markdown
from bench.report.lookup import same_content
from bench.report.model import ALIKE, DOUBTFUL, Cell, Table
from bench.report.render import render_suite
from bench.report.spec import ColumnKey, PublishedSpec, ReportSpec, TableSpec
from bench.report.tables import build_table
from bench.results import Component, DataRecord, Record, Value, read_records, write_records

SIZE = "tokenizer.quantizer.codebook_size"
TOLD = {"prepare": {"round": "8bit"}, "revision": 1, "networks": {}}


def table(records: Sequence[Record], columns: Any = ("psnr",), rows: Any = (SIZE,), **more: Any) -> Table:
    given = {k: more.pop(k) for k in ("sanity", "published", "entries", "doubts") if k in more}
    show_sanity = {"sanity": more.pop("show_sanity")} if "show_sanity" in more else {}
    return build_table(records, TableSpec(name="t", rows=rows, columns=columns, **more, **show_sanity), **given)


def column(made: Table, j: int = 0) -> list[Cell]:
    return [row.cells[j] for row in made.rows]


def sentences(made: Table, cell: Any) -> list[str]:
    return [dict(made.footnotes)[m] for m in cell.notes]


def told(name: str, number: float | None, **changes: Any) -> Value:
    """A value as the harness writes it, with all that its identity holds."""
    return value(name, number, **{"settings": TOLD, **changes})


def as_asked(key: str, number: float, stored_as: str | None = None, **changes: Any) -> Value:
    """A value measured as `name@protocol` says."""
    wish = wanted(key, "")
    return Value(
        name=stored_as or key,
        metric=wish.metric.name,
        number=number,
        unit="",
        direction="higher",
        images=705,
        protocol=wish.protocol.name,
        keywords=wish.metric.kwargs,
        settings={**TOLD, "prepare": wish.prepare, "revision": wish.metric.revision},
        **changes,
    )


# -- a column asks for a measurement, not for a name ---------------------------------------------------------


def test_a_value_stored_under_another_protocols_name_fills_the_column_that_means_the_same() -> None:
    """LlamaGen's PSNR is ours: RGB, 8 bits. Its SSIM is not: doubled data range, uniform window."""
    runs = [
        record(
            "a",
            {"psnr": told("psnr", 30.0), "ssim": told("ssim", 0.8, keywords=wanted("ssim@ours-1", "").metric.kwargs)},
        ),
        record("b", {"psnr": told("psnr", 31.0), "ssim@llamagen": as_asked("ssim@llamagen", 0.95)}, size=1024),
    ]
    made = table(runs, columns=("psnr@llamagen", "psnr", "ssim@llamagen", "ssim"))
    assert [[c.number for c in row.cells] for row in made.rows] == [[30.0, 30.0, None, 0.8], [31.0, 31.0, 0.95, None]]
    assert [c.heading for c in made.columns] == ["PSNR (llamagen)↑", "PSNR↑", "SSIM (llamagen)↑", "SSIM↑"]
    assert "Measuring protocols: llamagen (PSNR (llamagen), SSIM (llamagen)); ours-1 (PSNR, SSIM)." in made.notes


def test_a_plain_name_finds_the_same_measurement_stored_under_a_protocols_name() -> None:
    """`values: [psnr@llamagen, psnr, ssim]` of ours-1 is one PSNR; which of its names it got must not matter."""
    one = record("a", {"psnr@llamagen": as_asked("psnr@llamagen", 30.0), "ssim": told("ssim", 0.8)})
    assert column(table([one]))[0].number == 30.0
    other = record("b", {"ssim@llamagen": as_asked("ssim@llamagen", 0.95), "psnr": told("psnr", 30.0)})
    assert column(table([other], columns=("ssim",)))[0].number is None, "LlamaGen's SSIM is not ours"


def test_keywords_that_are_younger_than_a_record_change_nothing() -> None:
    """`usage` had no at_least once; at its neutral value the record of then and the one of today are the same."""
    kwargs = wanted("usage_window@ours-1", "").metric.kwargs
    assert kwargs.keys() > {"window"}, "the test needs a keyword with a neutral value"
    old, new = told("usage_window", 0.5, keywords={"window": 65536}), told("usage_window", 0.6, keywords=kwargs)
    wish = wanted("usage_window@xyfjason-2024", "")
    assert same_content(old, wish) and same_content(new, wish)
    for key in ("usage_window", "usage_window@xyfjason-2024"):
        made = table(
            [record("a", {"usage_window": old}), record("b", {"usage_window": new}, size=1024)], columns=(key,)
        )
        assert [c.mark for c in column(made)] == ["second", "best"] and not made.footnotes
    other = told("usage_window", 0.6, keywords={**kwargs, "zero_filled": True})
    assert not same_content(other, wish)


def test_preparation_and_metric_are_content_too() -> None:
    wish = wanted("psnr@llamagen", "")
    assert same_content(told("psnr", 1.0), wish)
    assert not same_content(told("psnr", 1.0, settings={**TOLD, "prepare": {"round": "none"}}), wish)
    assert not same_content(told("psnr", 1.0, metric="ssim"), wish)
    assert not same_content(value("psnr", 1.0), wish), "nothing is known of how it was prepared"


@pytest.mark.parametrize(
    ("key", "says"), [("psnr@lamagen", "did you mean llamagen"), ("pnsr@llamagen", "did you mean psnr")]
)
def test_a_column_of_an_unknown_protocol_or_value_is_answered_with_the_nearest(key: str, says: str) -> None:
    with pytest.raises(BadInput, match=f"report: columns: {key}.*{says}"):
        table([record("a", {"psnr": 30.0})], columns=(key,))


def test_records_of_a_protocol_that_is_not_here_any_more_are_still_shown() -> None:
    lost = told("psnr", 30.0, protocol="lost").model_copy(update={"name": "psnr@lost"})
    assert column(table([record("a", {"x": lost})], columns=("psnr@lost",)))[0].number == 30.0


# -- headings say what sets a number apart -------------------------------------------------------------------


def test_a_network_that_is_not_the_usual_one_is_in_the_heading() -> None:
    def lpips(net: str, number: float = 0.2, **more: Any) -> Value:
        return told("lpips", number, keywords={"net": net}, **more)

    def heading(v: Value, key: str | ColumnKey) -> str:
        return table([record("a", {"x": v})], columns=(key,)).columns[0].heading

    assert heading(lpips("alex"), "lpips") == "LPIPS↓"
    assert heading(lpips("squeeze"), "lpips") == "LPIPS (squeeze)↓"
    vgg = as_asked("lpips_vgg@seed-voken", 0.3).model_copy(update={"direction": "lower"})
    assert heading(vgg, "lpips_vgg@seed-voken") == "LPIPS (vgg, seed-voken)↓"
    assert heading(lpips("squeeze"), ColumnKey(key="lpips", title="LPIPS")) == "LPIPS (squeeze)↓"
    assert heading(lpips("squeeze"), ColumnKey(key="lpips", title="LPIPS-SqueezeNet")) == "LPIPS-SqueezeNet↓"
    other = Value(
        name="fd",
        metric="frechet_distance",
        number=3.0,
        unit="",
        direction="lower",
        images=705,
        protocol="p",
        keywords={"network": "inception_mixed_7a"},
    )
    assert "(inception_mixed_7a)" in heading(other, "fd")


def test_a_window_and_a_protocol_share_the_brackets() -> None:
    made = table(
        [record("a", {"x": as_asked("usage_window@xyfjason-2024", 0.5)})], columns=("usage_window@xyfjason-2024",)
    )
    assert made.columns[0].title == "Usage (xyfjason-2024, last 65,536)"
    empty = table([record("a")], columns=("usage_window@xyfjason-2024",))
    assert empty.columns[0].title == "Usage (xyfjason-2024, last 65,536)", "also before anything is measured"


# -- no two protocols in one column --------------------------------------------------------------------------


CHANGES = st.sampled_from(
    [
        {},
        {"settings": {**TOLD, "prepare": {"round": "none"}}},
        {"settings": {**TOLD, "revision": 2}},
        {"settings": {**TOLD, "networks": {"n": "ab"}}},
        {"images": 64},
        {"keywords": {"size": 7}},
    ]
)


@given(st.lists(st.tuples(st.floats(1, 40), CHANGES), min_size=1, max_size=7), st.booleans())
@settings(max_examples=80, deadline=None)
def test_numbers_in_a_column_were_measured_alike_or_are_footnoted(
    rows: list[tuple[float, dict[str, Any]]], mixed: bool
) -> None:
    made = table(
        [record(f"r{i}", {"psnr": told("psnr", x, **how)}, size=2**i) for i, (x, how) in enumerate(rows)],
        columns=(ColumnKey(key="psnr", mixed=mixed),),
    )
    shown = [(i, c) for i, c in enumerate(column(made)) if c.number is not None]
    plain = {str(rows[i][1]) for i, c in shown if not c.notes}
    assert len(plain) == 1, "numbers without a footnote share all conditions"
    most = max(sum(how == other for _, other in rows) for _, how in rows)
    assert sum(not c.notes for _, c in shown) == most, "and they are those that most rows share"
    assert len(shown) == (len(rows) if mixed else most)
    assert all(c.mark == "" for _, c in shown if c.notes)
    for cell in column(made):
        if cell.number is None:
            (sentence,) = sentences(made, cell)
            assert sentence.startswith("measured under ") and "mixed: true" in sentence


def test_rows_headed_by_their_data_set_may_have_different_test_images_and_nothing_else() -> None:
    small = {**CELEBA, "test": DataRecord(fingerprint="x", images=10, of=10)}

    def runs(**how: Any) -> list[Record]:
        named = {"dataset.name": "celeba"}
        return [
            record("a", {"psnr": told("psnr", 1.0)}, fields=named),
            record("b", {"psnr": told("psnr", 2.0)}, fields=named, size=1024),
            record("c", {"psnr": told("psnr", 3.0, images=10, **how)}, fields={"dataset.name": "lfw"}, data=small),
        ]

    made = table(runs(), rows=("dataset", SIZE))
    assert [c.number for c in column(made)] == [1.0, 2.0, 3.0]
    assert "not compared with the others" in sentences(made, column(made)[2])[0] and column(made)[2].mark == ""
    assert column(table(runs(keywords={"size": 7}), rows=("dataset", SIZE)))[2].number is None
    unseen = [*runs()[:2], runs()[2].model_copy(update={"fields": {**runs()[2].fields, SIZE: 2048}})]
    assert column(table(unseen))[2].number is None, "no row says that the images differ"
    assert "`mixed: true`" in sentences(table(unseen), column(table(unseen))[2])[0]


def test_the_protocol_of_a_number_that_is_not_shown_is_not_named() -> None:
    runs = [
        record("a", {"psnr": told("psnr", 1.0)}),
        record("b", {"psnr": told("psnr", 1.0)}, size=1024),
        record("c", {"psnr": told("psnr", 2.0, protocol="odd", keywords={"size": 7})}, size=2048),
    ]
    assert "Measuring protocol: ours-1." in table(runs).notes
    mixed = table(runs, columns=(ColumnKey(key="psnr", mixed=True),))
    assert "Measuring protocols: odd (PSNR); ours-1 (PSNR)." in mixed.notes


# -- chance --------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(20, 21), min_size=1, max_size=4, unique=True), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_sign_of_likeness_is_welchs_test_against_the_best(rows: list[list[float]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    made = table(
        [record(f"r{i}-{s}", {"psnr": x}, size=2**i, seed=s) for i, row in enumerate(rows) for s, x in enumerate(row)]
    )
    cells = column(made)
    firsts = [i for i, c in enumerate(cells) if c.mark == "best"]
    best = rows[max(firsts, key=lambda i: (len(rows[i]), -i))]
    for cell, row in zip(cells, rows, strict=True):
        expected = False
        if cell.mark != "best" and min(len(row), len(best)) > 1:
            p = stats.ttest_ind(best, row, equal_var=False).pvalue
            if abs(p - 0.05) < 1e-9:
                continue
            expected = p >= 0.05
        assert cell.alike == expected
    said = any(ALIKE in note for note in made.notes)
    assert said == any(c.alike for c in cells)


def test_of_single_runs_the_table_says_that_nothing_is_known_of_chance() -> None:
    single = [record("a", {"psnr": 30.0}), record("b", {"psnr": 31.0}, size=1024)]
    says = "Single runs: whether a difference is more than chance is not known."
    assert says in table(single).notes and not any(c.alike for c in column(table(single)))
    assert says not in table(single[:1]).notes, "one row: there is no difference"
    far = [record(f"{k}{s}", {"psnr": k + s / 1000}, size=k, seed=s) for k in (10, 20) for s in (1, 2, 3)]
    made = table(far)
    assert says not in made.notes and not any(ALIKE in n for n in made.notes), (
        "told apart: nothing is marked, nothing said"
    )


# -- doubts --------------------------------------------------------------------------------------------------


def test_a_doubted_number_is_shown_with_its_sign_and_reason_and_is_not_best() -> None:
    runs = [record("a", {"psnr": 30.0}), record("b", {"psnr": 99.0}, size=1024), record("c", {"psnr": 31.0}, size=2048)]
    made = table(runs, doubts={"b": {"psnr": ["above that of the originals themselves"]}, "c": {"ssim": ["odd"]}})
    assert [c.mark for c in column(made)] == ["second", "", "best"]
    assert [c.shown for c in column(made)] == ["30.0000", "99.0000 (?)", "31.0000"]
    assert sentences(made, column(made)[1]) == ["above that of the originals themselves"]
    assert any(n.startswith(DOUBTFUL) for n in made.notes)


def test_the_gates_are_asked_without_being_told_to() -> None:
    """Better than the originals themselves, and more codes in use than there are: not silently best."""
    runs = [
        record("a", {"psnr": told("psnr", 41.0)}),
        record("b", {"psnr": told("psnr", 30.0), "usage": told("usage", 1.5)}, size=1024),
    ]
    identity = yardstick("identity", {"psnr": told("psnr", 40.0)}).model_copy(update={"fields": {"sanity": "identity"}})
    made = table(runs, columns=("psnr", "usage"), sanity=[identity])
    assert [[c.doubtful for c in row.cells] for row in made.rows] == [[True, False], [False, True], [False, False]]
    assert [c.mark for c in column(made)] == ["", "", ""] and "row identity" in sentences(made, column(made)[0])[0]
    hidden = table(runs, columns=("psnr",), sanity=[identity], show_sanity=False)
    assert column(hidden)[0].doubtful, "also where the yardsticks are not shown"


def test_a_doubt_about_one_seed_names_it() -> None:
    runs = [record("a", {"psnr": 30.0}), record("b", {"psnr": 99.0}, seed=2)]
    made = table(runs, doubts={"b": {"psnr": ["odd"]}})
    assert sentences(made, column(made)[0]) == ["seed 2: odd"] and column(made)[0].doubtful
    both = table(runs, doubts={i: {"psnr": ["odd"]} for i in "ab"})
    assert sentences(both, column(both)[0]) == ["odd"]


def test_doubts_are_found_under_the_name_a_value_is_stored_by() -> None:
    made = table(
        [record("a", {"psnr": told("psnr", 30.0)})], columns=("psnr@llamagen",), doubts={"a": {"psnr": ["odd"]}}
    )
    assert column(made)[0].doubtful


# -- yardsticks ----------------------------------------------------------------------------------------------


def yardstick(label: str, values: dict[str, Any], **more: Any) -> Record:
    return record(f"sanity-{label}", values, label=label, fields={}, **more)


def test_yardsticks_stand_last_and_are_never_best() -> None:
    runs = [record("a", {"psnr": 30.0, "ssim": 0.8}), record("b", {"psnr": 31.0, "ssim": 0.9}, size=1024)]
    sanity = [yardstick("mean colour", {"psnr": 12.0}), yardstick("JPEG", {"psnr": 50.0, "ssim": 0.99})]
    made = table(runs, rows=("tokenizer.quantizer", SIZE), columns=("psnr", "ssim", "parameters.total"), sanity=sanity)
    assert [row.sanity for row in made.rows] == [False, False, True, True]
    assert [[h.text for h in row.headers] for row in made.rows[2:]] == [["JPEG", ""], ["mean colour", ""]]
    assert [c.mark for c in column(made)] == ["second", "best", "", ""]
    assert [c.text for c in made.rows[3].cells][:2] == ["12.0000", "–"] and not made.rows[3].cells[1].notes
    assert "n = 1" in " ".join(made.notes) and not any("(n=" in c.text for row in made.rows for c in row.cells)
    assert any("yardsticks" in n for n in made.notes)
    plain = table(runs, columns=("psnr",), sanity=sanity, show_sanity=False)
    assert len(plain.rows) == 2 and plain == table(runs, columns=("psnr",), show_sanity=False)


def test_a_yardstick_measured_otherwise_is_refused_and_does_not_outvote_the_runs() -> None:
    runs = [record("a", {"psnr": told("psnr", 30.0)})]
    odd = [yardstick(f"odd {i}", {"psnr": told("psnr", 50.0, keywords={"size": 7})}) for i in range(3)]
    made = table(runs, sanity=odd)
    assert [c.number for c in column(made)] == [30.0, None, None, None]
    assert "mixed: true" in sentences(made, column(made)[1])[0]


def test_yardsticks_of_other_images_or_weights() -> None:
    """Those on images that no run was measured on are left out; of whose weights a row is does not matter to it."""
    how = {"settings": {**TOLD, "weights": "average"}}
    runs = [record("a", {"psnr": told("psnr", 30.0, **how)})]
    other = {**CELEBA, "test": DataRecord(fingerprint="elsewhere", images=705)}
    made = table(
        runs,
        sanity=[
            yardstick("JPEG", {"psnr": told("psnr", 40.0, settings={**TOLD, "weights": "live"})}),
            yardstick("WebP", {"psnr": told("psnr", 40.0)}, data=other),
        ],
    )
    assert [c.number for c in column(made)] == [30.0, 40.0] and not made.rows[1].cells[0].notes


def test_yardsticks_are_ordered_by_kind_and_rate_and_name_their_data_set_where_rows_do() -> None:
    lfw = {**CELEBA, "test": DataRecord(fingerprint="lfw", images=705)}
    runs = [
        record("a", {"psnr": told("psnr", 1.0)}, fields={"dataset.name": "celeba"}),
        record("b", {"psnr": told("psnr", 2.0)}, fields={"dataset.name": "lfw"}, data=lfw),
    ]

    def row(i: int, kind: str, bits: float, name: str, data: Any) -> Record:
        made = record(
            f"s{i}", {"psnr": told("psnr", bits)}, label=f"{kind} {bits:g}", layout={"bits_per_image": bits}, data=data
        )
        parts = {"dataset": Component(name=name, title=name.upper(), source=None)}
        return made.model_copy(update={"fields": {"sanity": kind, "dataset.name": name}, "components": parts})

    sanity = [
        row(1, "webp", 9.0, "lfw", lfw),
        row(2, "jpeg", 10.0, "celeba", CELEBA),
        row(3, "jpeg", 9.0, "celeba", CELEBA),
        row(4, "jpeg", 9.0, "lfw", lfw),
    ]
    made = table(runs, rows=(SIZE, "dataset"), sanity=sanity)
    assert [[h.text for h in r.headers] for r in made.rows[2:]] == [
        ["jpeg 9 (CELEBA)", "CELEBA"],
        ["jpeg 9 (LFW)", "LFW"],
        ["jpeg 10", "CELEBA"],
        ["webp 9", "LFW"],
    ]
    assert [c.number for c in column(made)] == [1.0, 2.0, 9.0, 9.0, 10.0, 9.0]


def test_a_yardstick_that_could_not_be_had_says_why() -> None:
    skipped = yardstick("WebP", {}, state="skipped", reason="no rate that low")
    explained = yardstick("JPEG", {"psnr": 40.0}, provenance={"note": "headers are not counted"})
    made = table([record("a", {"psnr": 30.0})], sanity=[skipped, explained])
    assert sentences(made, made.rows[1].headers[0]) == ["headers are not counted"]
    assert (
        sentences(made, made.rows[2].cells[0]) == ["skipped: no rate that low"]
        and made.rows[2].cells[0].mark == "skipped"
    )


def test_the_stamp_changes_with_a_yardsticks_numbers() -> None:
    runs = [record("a", {"psnr": 30.0})]
    stamps = {
        table(runs, sanity=s).stamp
        for s in ([], [yardstick("JPEG", {"psnr": 40.0})], [yardstick("WebP", {"psnr": 40.0})])
    }
    assert len(stamps) == 3


# -- published numbers ---------------------------------------------------------------------------------------


def entry(metric: str, text: str, **changes: Any) -> Published:
    known: dict[str, Any] = {
        "id": f"x-{metric}",
        "system": "s",
        "variant": "K=512",
        "dataset": "celeba",
        "image_size": "64",
        "split": "test",
        "n_images": 705,
        "tokens": 256,
        "codebook_size": 512,
        "codebook_dim": 64,
        "bits_per_image": 2304.0,
        "metric": metric,
        "text": text,
        "value": float(text),
        "unit": "share" if metric == "usage" else "",
        "protocol": "ours-1",
        "source": "who/what README.md@1",
        "table": "Table 2",
        "evidence": "read",
        "note": "",
        "doubt": "",
        "settings": (),
    }
    return Published(**known | changes)


WHICH = (PublishedSpec(system="s", variant="K={tokenizer.quantizer.codebook_size}"),)
WHOLE = {"train": DataRecord(fingerprint="t", images=9, of=9), "test": DataRecord(fingerprint="u", images=705, of=705)}
NAMED = {"dataset.name": "celeba", "dataset.image_size": 64}


def published(
    entries: Sequence[Published], values: dict[str, Any] | None = None, key: str = "psnr", **changes: Any
) -> Table:
    shown = values or {"psnr": told("psnr", 30.1234567), "usage": told("usage", 0.5, keywords={"window": None})}
    run = record("a", shown, **{"fields": NAMED, "data": WHOLE, **changes})
    return table([run], columns=(ColumnKey(key=key, published=True),), published=WHICH, entries=entries)


def test_a_published_number_and_the_difference_stand_beside_ours() -> None:
    made = published([entry("psnr", "31.55")])
    ours, theirs, gap = made.rows[0].cells
    assert [c.heading for c in made.columns] == ["PSNR↑", "published", "difference"]
    assert (ours.text, theirs.text, gap.text) == ("30.1235", "31.55", "−1.43")
    assert gap.number == pytest.approx(30.1234567 - 31.55)
    assert sentences(made, theirs) == ["published: who/what README.md@1, Table 2; protocol ours-1"]
    assert any(n.startswith("Difference: ours minus published") for n in made.notes)


@given(st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_differences_are_signed_and_of_shares_in_percentage_points(ours: int, theirs: int) -> None:
    made = published(
        [entry("usage", f"{theirs / 1000:.3f}")],
        {"usage": told("usage", ours / 1000, keywords={"window": None})},
        "usage",
    )
    text = made.rows[0].cells[2].text
    assert float(text.replace("−", "-")) == pytest.approx((ours - theirs) / 10)
    assert text[0] == ("+" if ours > theirs else "−" if ours < theirs else "0")
    assert made.rows[0].cells[1].text == format_number(theirs / 1000, "share", 1)
    assert any("percentage points" in n for n in made.notes)


@pytest.mark.parametrize(
    ("changes", "run", "says"),
    [
        ({"n_images": 19962}, {}, "measured on 705 images instead of 19,962"),
        ({"settings": (("train.steps", "500000"),)}, {}, "1,000 training steps instead of 500,000"),
        ({"doubt": "misprint"}, {}, "misprint"),
        ({}, {"data": {**WHOLE, "train": DataRecord(fingerprint="t", images=4, of=9)}}, "trained on 4 of 9 images"),
    ],
)
def test_a_number_that_is_only_partly_comparable_has_no_difference(
    changes: dict[str, Any], run: dict[str, Any], says: str
) -> None:
    made = published([entry("psnr", "31.55", **changes)], **run)
    _, theirs, gap = made.rows[0].cells
    assert theirs.text == "31.55" and (gap.text, gap.number) == ("–", None)
    assert any(says in s for s in sentences(made, theirs)) and any(says in s for s in sentences(made, gap))


@pytest.mark.parametrize(("evidence", "mark"), [("recalled", " (recalled)"), ("image", " (read off a figure)")])
def test_no_format_prints_a_recalled_number_without_its_mark(evidence: str, mark: str) -> None:
    made = published([entry("psnr", "31.557", evidence=evidence)])
    for text in (to_markdown(made), to_html(made), to_latex(made), to_csv(made), printed(made)):
        for found in re.finditer(r"31\.557", text):
            assert text[found.end() :].startswith(mark)
        assert "31.557" in text
    if evidence == "image":
        assert made.rows[0].cells[2].text == "−1.434 (read off a figure)"
    else:
        assert made.rows[0].cells[2].text == "–"


def test_nothing_is_held_against_a_number_of_another_protocol() -> None:
    llamagen = entry("ssim", "0.95", protocol="llamagen")
    ours = told("ssim", 0.8, keywords=wanted("ssim@ours-1", "").metric.kwargs)
    made = published([llamagen], {"ssim": ours}, "ssim")
    assert [c.text for c in made.rows[0].cells] == ["0.8000", "–", "–"]
    assert "data_range 510 instead of 255" in sentences(made, made.rows[0].cells[1])[0]
    made = published([llamagen], {"ssim": ours, "b": as_asked("ssim@llamagen", 0.96)}, "ssim@llamagen")
    assert [c.text for c in made.rows[0].cells] == ["0.9600", "0.95", "+0.01"]
    none = published([], {"ssim": ours}, "ssim")
    assert sentences(none, none.rows[0].cells[1]) == ["nothing is published of this run"]


def test_the_published_number_is_held_against_the_number_that_is_shown() -> None:
    """A run may hold the same value on 64 images, which is what the other rows have, and on all."""
    runs = [
        record(f"r{size}", {"psnr": told("psnr", 30.0, images=64)}, size=size, fields=NAMED, data=WHOLE)
        for size in (8, 16)
    ]
    both = record("a", {"x": told("psnr", 29.0), "y": told("psnr", 31.0, images=64)}, fields=NAMED, data=WHOLE)
    made = table(
        [*runs, both],
        columns=(ColumnKey(key="psnr", published=True),),
        published=WHICH,
        entries=[entry("psnr", "31.5")],
    )
    ours, theirs, gap = made.rows[-1].cells
    assert (ours.text, theirs.text, gap.text) == ("31.0000", "31.5", "–")
    assert any("64 images instead of 705" in s for s in sentences(made, theirs))


def test_a_mean_over_seeds_is_held_against_the_published_number() -> None:
    runs = [record(f"r{s}", {"psnr": told("psnr", 30.0 + s)}, seed=s, fields=NAMED, data=WHOLE) for s in (1, 2, 3)]
    made = table(
        runs,
        columns=(ColumnKey(key="psnr", published=True),),
        published=WHICH,
        entries=[entry("psnr", "31.50", settings=(("train.seed", "8888"),))],
    )
    assert made.rows[0].cells[2].text == "+0.50" and made.rows[0].cells[2].number == pytest.approx(0.5)
    assert len(made.footnotes) == 1, "another seed is nothing to say of a mean over seeds"


def test_the_columns_beside_ours_are_never_best_nor_averaged() -> None:
    entries = [entry("psnr", "31.55"), entry("psnr", "32.55", id="y", variant="K=1024", codebook_size=1024)]
    runs = [
        record("a", {"psnr": told("psnr", 30.0)}, fields=NAMED, data=WHOLE),
        record("b", {"psnr": told("psnr", 31.0)}, size=1024, fields=NAMED, data=WHOLE),
        record("c", size=2048, fields=NAMED, data=WHOLE, state="failed", reason="out of memory"),
    ]
    made = table(
        runs,
        columns=(ColumnKey(key="psnr", published=True),),
        published=WHICH,
        entries=entries,
        sanity=[yardstick("JPEG", {"psnr": told("psnr", 40.0)}, data=WHOLE)],
    )
    assert [c.mark for c in column(made, 1)] == ["", "", "failed", "missing"]
    assert [c.text for c in column(made, 2)] == ["−1.55", "−1.55", "–", "–"]
    assert not any("n=" in c.text for row in made.rows for c in row.cells)


def test_published_columns_need_a_system_and_a_measured_value() -> None:
    with pytest.raises(BadInput, match=r"psnr: `published: true`.*published: \[\{system"):
        table([record("a", {"psnr": 30.0})], columns=(ColumnKey(key="psnr", published=True),), entries=[])
    with pytest.raises(BadInput, match=r"parameters\.total"):
        table([record("a")], columns=(ColumnKey(key="parameters.total", published=True),), published=WHICH, entries=[])


def test_a_doubted_number_of_ours_has_no_difference() -> None:
    run = record("a", {"psnr": told("psnr", 30.0)}, fields=NAMED, data=WHOLE)
    made = table(
        [run],
        columns=(ColumnKey(key="psnr", published=True),),
        published=WHICH,
        entries=[entry("psnr", "31.5")],
        doubts={"a": {"psnr": ["odd"]}},
    )
    assert [c.shown for c in made.rows[0].cells] == ["30.0000 (?)", "31.5", "–"]


# -- every format says the same ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """What a reader sees in one cell."""

    text: str
    raised: str
    style: str = ""


def wanted_cells(made: Table) -> list[list[Shown]]:
    return [
        [Shown(c.shown, ",".join(c.raised), c.mark if c.mark in ("best", "second") else "") for c in row.cells]
        for row in made.rows
    ]


def markdown_cells(made: Table) -> list[list[Shown]]:
    rows = [line for line in to_markdown(made).splitlines() if line.startswith("|")][2:]
    found = []
    for line in rows:
        cells = re.split(r"(?<!\\)\|", line)[1:-1][len(made.keys) :]
        found.append([_from_tags(c.strip().replace("\\~", "~"), r"\*\*(.*)\*\*", r"<u>(.*)</u>") for c in cells])
    return found


def _from_tags(cell: str, bold: str, under: str) -> Shown:
    raised = re.search(r"<sup>(.*?)</sup>$", cell)
    text = cell[: raised.start()] if raised else cell
    for pattern, style in ((bold, "best"), (under, "second")):
        if found := re.fullmatch(pattern, text):
            return Shown(found[1], raised[1] if raised else "", style)
    return Shown(text, raised[1] if raised else "")


class Cells(HTMLParser):
    """The cells of the body: text, what is raised, and how it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[Shown]] = []
        self.kinds: list[str] = []
        self.inside: list[str] = []
        self.parts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
            self.kinds.append(dict(attrs).get("class") or "")
        if tag == "td":
            self.parts = {"text": "", "sup": "", "style": ""}
        self.parts["style"] = {"b": "best", "u": "second"}.get(tag, self.parts.get("style", ""))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.inside.pop()
        if tag == "td":
            self.rows[-1].append(Shown(self.parts["text"], self.parts["sup"], self.parts["style"]))

    def handle_data(self, data: str) -> None:
        if "td" in self.inside:
            self.parts["sup" if "sup" in self.inside else "text"] += data


LATEX = {r"$\pm$": "±", r"\%": "%", r"$\approx$": "≈", "--": "–", "-{}": "-", "$-$": "−", "{[}": "[", "{]}": "]"}


def latex_cells(made: Table) -> list[list[Shown]]:
    found = []
    for line in to_latex(made).split("\\midrule\n", 1)[1].partition("\\bottomrule")[0].splitlines():
        if not line.endswith(" \\\\"):
            continue
        cells = []
        for cell in line.removesuffix(" \\\\").split(" & ")[len(made.keys) :]:
            raised = re.search(r"\\textsuperscript\{(.*)\}$", cell)
            text, style = cell[: raised.start()] if raised else cell, ""
            for command, name in ((r"\textbf", "best"), (r"\underline", "second")):
                if text.startswith(command):
                    text, style = text.removeprefix(command)[1:-1], name
            above = raised[1] if raised else ""
            for code, letter in LATEX.items():
                text, above = text.replace(code, letter), above.replace(code, letter)
            cells.append(Shown(text, above, style))
        found.append(cells)
    return found


def terminal_cells(made: Table) -> list[list[Shown]]:
    shown = terminal_table(made).table
    columns = [list(c.cells) for c in shown.columns][len(made.keys) :]
    found = []
    for cells in zip(*columns, strict=True):
        row = []
        for text in cells:
            styles = {str(s.style) for s in text.spans} | {str(text.style)}
            parts = [
                text.plain[s.start : s.end] for s in text.spans if str(s.style) == "dim" and text.plain[s.start] == " "
            ]
            style = "best" if "bold" in styles else "second" if "underline" in styles else ""
            row.append(
                Shown(text.plain.removesuffix(parts[-1] if parts else ""), parts[-1].strip() if parts else "", style)
            )
        found.append(row)
    return found


def printed(made: Table) -> str:
    from rich.console import Console

    console = Console(width=400, file=io.StringIO(), color_system=None)
    console.print(terminal_table(made))
    return console.file.getvalue()


ROW = st.tuples(
    st.lists(st.sampled_from([20.0, 20.5, 21.0, 30.0]), min_size=1, max_size=3),
    CHANGES,
    st.booleans(),
    st.sampled_from(["done", "done", "done", "failed"]),
)


@given(
    st.lists(ROW, min_size=1, max_size=5),
    st.booleans(),
    st.lists(st.sampled_from([25.0, 35.0, None]), max_size=2),
    st.sampled_from(["read", "image", "recalled", None]),
)
@settings(max_examples=50, deadline=None)
def test_all_formats_show_the_same_cells_marks_and_notes(
    rows: list[Any], mixed: bool, beneath: list[float | None], evidence: str | None
) -> None:
    runs = [
        record(
            f"r{i}-{s}",
            {"psnr": told("psnr", x, **how), "usage": value("usage", x / 40)},
            size=2**i,
            seed=s,
            state=state,
            fields=NAMED,
            data=WHOLE,
        )
        for i, (numbers, how, _, state) in enumerate(rows)
        for s, x in enumerate(numbers)
    ]
    doubts = {f"r{i}-0": {"psnr": ["odd"]} for i, (_, _, doubted, _) in enumerate(rows) if doubted}
    entries = (
        [entry("psnr", "20.75", id=f"e{i}", variant=f"K={2**i}", evidence=evidence) for i in range(2)]
        if evidence
        else []
    )
    made = table(
        runs,
        columns=(ColumnKey(key="psnr", mixed=mixed, published=True), "usage"),
        doubts=doubts,
        entries=entries,
        published=WHICH,
        sanity=[yardstick(f"y{i}", {"psnr": told("psnr", x)} if x else {}, data=WHOLE) for i, x in enumerate(beneath)],
    )
    expected = wanted_cells(made)
    assert markdown_cells(made) == expected
    assert latex_cells(made) == expected
    assert terminal_cells(made) == expected
    cells = Cells()
    cells.feed(to_html(made))
    assert cells.rows[1:] == expected
    assert [("sanity" in k) for k in cells.kinds[1:]] == [row.sanity for row in made.rows]
    lines = list(csv.DictReader(io.StringIO(to_csv(made))))
    for line, row in zip(lines, made.rows, strict=True):
        assert line["kind"] == ("sanity" if row.sanity else "run")
        for c, cell in zip(made.columns, row.cells, strict=True):
            assert line[c.name] == (repr(cell.number) if cell.number is not None else "")
            remark = line[f"{c.name}_remark"]
            assert all(s in remark for s in sentences(made, cell))
            assert (DOUBTFUL in remark) == cell.doubtful and ("not distinguishable" in remark) == cell.alike
            if c.kind != "value":
                assert line[f"{c.name}_shown"].lstrip("'") == cell.text


def test_a_rule_stands_between_runs_and_yardsticks() -> None:
    runs = [record("a", {"psnr": 30.0}), record("b", {"psnr": 31.0}, size=1024)]
    made = table(runs, sanity=[yardstick("JPEG", {"psnr": 40.0}), yardstick("WebP", {"psnr": 41.0})])
    body = to_latex(made).partition("\\midrule\n")[2].partition("\\bottomrule")[0].split("\\midrule\n")
    assert len(body) == 2 and body[0].count("\\\\") == 2 and body[1].startswith("\\textit{JPEG}")
    assert '<tr class="sanity rule"><th scope="row">JPEG' in to_html(
        made
    ) and '<tr class="sanity"><th scope="row">WebP' in to_html(made)
    assert "| <i>JPEG</i> | 40.0000 |" in to_markdown(made)
    lines = printed(made).splitlines()
    (rule,) = [i for i, line in enumerate(lines) if "JPEG" in line]
    assert "─" in lines[rule - 1] and "31.0000" in lines[rule - 2]
    many = table(
        [record(f"r{i:03d}", {"psnr": float(i)}, size=i + 1) for i in range(120)],
        sanity=[yardstick("JPEG", {"psnr": 1.0})],
    )
    lines = printed(many).splitlines()
    (rule,) = [i for i, line in enumerate(lines) if "JPEG" in line]
    assert set(lines[rule - 1].strip()) == {"─"}, "also where rows are laid out quickly"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_with_every_sign_compiles(tmp_path: Path) -> None:
    runs = [
        record(f"r{i}{s}", {"psnr": told("psnr", 20 + i + s)}, size=2**i, seed=s, fields=NAMED, data=WHOLE)
        for i in (9, 10)
        for s in (1, 2, 3)
    ]
    made = table(
        runs,
        columns=(ColumnKey(key="psnr", published=True),),
        published=WHICH,
        doubts={"r101": {"psnr": ["odd"]}},
        entries=[entry("psnr", "31.55", evidence="image")],
        sanity=[yardstick(HOSTILE, {"psnr": told("psnr", 40.0)}, data=WHOLE)],
    )
    likely = table([r for r in runs], columns=("psnr",))
    assert any(c.alike for c in column(likely)) and any(c.doubtful for c in column(made))
    (tmp_path / "all.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\usepackage{multirow}\\begin{document}"
        + to_latex(made)
        + to_latex(likely)
        + "\\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "not found" in done.stdout:
        pytest.skip("pdflatex has no booktabs or multirow")
    assert done.returncode == 0, done.stdout[-2000:]


HOSTILE = r"<script>alert(1)</script> | `a` *b* _c_ [x](y) 100% & #1 $5 ~ ^ \ {z} ≈ − =cmd" + "\n# new"


def test_hostile_labels_doubts_and_sources_are_only_text(tmp_path: Path) -> None:
    run = record("a", {"psnr": told("psnr", 30.0)}, fields=NAMED, data=WHOLE)
    made = table(
        [run],
        columns=(ColumnKey(key="psnr", published=True),),
        published=WHICH,
        entries=[entry("psnr", "31.5", source=HOSTILE, table=HOSTILE)],
        sanity=[yardstick(HOSTILE, {"psnr": told("psnr", 40.0)}, data=WHOLE)],
        doubts={"a": {"psnr": [HOSTILE]}},
    )
    cells = Cells()
    cells.feed(to_html(made))
    assert len(cells.rows) == 3 and "<script>" not in to_html(made) + to_markdown(made)
    rows = [line for line in to_markdown(made).splitlines() if line.startswith("|")]
    assert len(rows) == 4 and {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in rows} == {5}
    bare = re.sub(r"\\[\\{}$&#%_]", "", to_latex(made))
    assert "script>" not in bare and bare.count("{") == bare.count("}")
    assert "\\textless{}script" in to_latex(made)
    for line in csv.reader(io.StringIO(to_csv(made))):
        assert all(not cell.startswith(("=", "+", "-", "@")) for cell in line if not re.fullmatch(r"-?[\d.e-]+", cell))


def test_a_suite_is_rendered_with_its_yardsticks_and_published_numbers(tmp_path: Path) -> None:
    """Through the same door as `bench report`, twice, byte for byte."""
    report = ReportSpec(
        tables=(TableSpec(name="t", rows=(SIZE,), columns=(ColumnKey(key="psnr", published=True),)),), published=WHICH
    )
    runs = [record("a", {"psnr": told("psnr", 30.0)}, fields=NAMED, data=WHOLE)]
    write_records(tmp_path / "sanity.jsonl", [yardstick("JPEG", {"psnr": told("psnr", 40.0)}, data=WHOLE)])
    given = {"sanity": read_records(tmp_path / "sanity.jsonl"), "entries": [entry("psnr", "31.5")]}
    for folder in ("one", "two"):
        render_suite("s", runs, report, "why?", tmp_path / folder, **given)
    one, two = ((tmp_path / folder / "s" / "table.md").read_bytes() for folder in ("one", "two"))
    assert one == two and b"JPEG" in one and b"31.5" in one and "−1.5".encode() in one

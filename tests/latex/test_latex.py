"""LaTeX tables compile and fit the page: each committed one, and one with hostile names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_records import record

from bench.report.formats import to_latex
from bench.report.spec import ColumnKey, RowKey, TableSpec
from bench.report.tables import build_table

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted((ROOT / "reports").glob("*/table*.tex"))
HOSTILE = (r"<script>alert(1)</script> | `a` *b* _c_ [x](y) 100% & #1 $5 ~ ^ \ {z} \input{/etc/passwd} \end{document} --- ¿→ 中😀 ''x''"
           " =cmd\n# new")


def hostile() -> str:
    """Names that are LaTeX, in every place that takes one; merged rows, marks, notes and an empty cell."""
    runs = [record(f"r{i}", {} if x is None else {"psnr": x}, size=512 << i, fields={"note": note}, quantizer_title=HOSTILE,
                   state="failed" if x is None else "done", reason=HOSTILE if x is None else None)
            for i, (x, note) in enumerate([(30.0, HOSTILE), (31.0, HOSTILE), (None, "[first"), (29.0, "\\\\[1cm]")])]
    spec = TableSpec(name="hostile", title=HOSTILE, caption=HOSTILE, rows=("note", RowKey(key="tokenizer.quantizer", title="[x] & y"),
                     "tokenizer.quantizer.codebook_size"), columns=(ColumnKey(key="psnr", title="_^"), "parameters.total"))
    return to_latex(build_table(runs, spec, suite=HOSTILE))


@pytest.mark.parametrize("packages", ["booktabs,multirow", "booktabs,multirow,graphicx"])
def test_committed_tables_and_hostile_ones_compile_and_fit_the_page(compiled, tmp_path: Path, packages: str) -> None:
    """One run of TeX for all, each on a page of its own; what is wider than the text fits it where graphicx is loaded."""
    texts = {f"{p.parent.name}/{p.name}": p.read_text() for p in TABLES} | {"hostile": hostile()}
    assert len(texts) > 3
    body = "".join(f"\\typeout{{<<{i}>>}}\n{text}\\clearpage\n" for i, text in enumerate(texts.values()))
    (tmp_path / "all.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{{packages}}}\\textwidth=17cm\n\\begin{{document}}\n{body}\\typeout{{<<end>>}}\\end{{document}}\n")
    log = compiled(tmp_path / "all.tex")
    assert "<<end>>" in log and "Missing character" not in log and f"({len(texts)} pages" in log.replace("\n", "")
    for part, name in zip(re.split(r"<<\d+>>", log)[1:], texts, strict=True):
        wide = [float(x) for x in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide", part)]
        if "graphicx" in packages:
            assert max(wide, default=0) < 1, f"{name}: {max(wide)} pt wider than the text"


def test_without_an_escape_the_same_table_would_not_compile(compiled, tmp_path: Path) -> None:
    (tmp_path / "bad.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,multirow}\\begin{document}\n"
        f"{hostile().replace(chr(92) + '%', '%').replace(chr(92) + '&', '&')}\\end{{document}}\n")
    with pytest.raises(AssertionError):
        compiled(tmp_path / "bad.tex")

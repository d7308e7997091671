"""A TeX: pdflatex with booktabs and multirow, or tectonic; skipped where there is none, failed where BENCH_REQUIRE_LATEX is set."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

MISSING = ("needs pdflatex with booktabs and multirow (Debian's texlive-latex-recommended texlive-latex-extra), or tectonic")
Compile = Callable[[Path], str]


@pytest.fixture(scope="session")
def compiled() -> Compile:
    """Compiles a .tex file in its folder and returns the log; fails with its end where there is no PDF."""
    command = _command()
    if command is None:
        if os.environ.get("BENCH_REQUIRE_LATEX"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)

    def run(file: Path) -> str:
        done = subprocess.run([*command, file.name], cwd=file.parent, text=True, errors="replace", capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=110)
        assert done.returncode == 0 and file.with_suffix(".pdf").is_file(), (done.stdout + done.stderr)[-3000:]
        return done.stdout

    return run


def _command() -> list[str] | None:
    if shutil.which("pdflatex") and shutil.which("kpsewhich"):
        found = subprocess.run(["kpsewhich", "booktabs.sty", "multirow.sty"], capture_output=True, text=True, timeout=60)
        if len(found.stdout.split()) == 2:
            return ["pdflatex", "-interaction=nonstopmode", "-halt-on-error"]
    return ["tectonic"] if shutil.which("tectonic") else None

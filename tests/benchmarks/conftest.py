"""Benchmarks run where they are asked for by name, and are skipped in the plain run (`--benchmark-skip` in pyproject)."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    asked = [(config.invocation_params.dir / arg.split("::")[0]).resolve() for arg in config.args]
    if asked and all(path.is_relative_to(HERE) for path in asked):
        config.option.benchmark_skip = False

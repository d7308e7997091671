"""Who may import whom, read from the source; and that commands which need no torch never load it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bench", "implementations")
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
         for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))}
#: modules that plan, list, launch and report: no torch at import, nor in anything they import
TORCH_FREE = {"bench", "bench.__main__", *(f"bench.{name}" for name in (
    "binder", "catalogue", "checked", "cli", "cli_checkpoints", "cli_numbers", "cli_profile", "cli_view", "collect", "compare", "costs", "curves", "diagnostics", "download", "drive", "errors", "explain", "failures", "files", "follow", "image_cache", "image_dataset",
    "image_files", "jobs", "launch", "npz", "places", "plan", "points", "preflight", "protocol", "provenance", "published", "registry", "reporting", "resources", "results", "run",
    "runs", "scheduler", "schema", "share", "site", "slurm", "spec", "stopping", "submissions", "submit", "suite", "task", "terminal", "timings",
    "verify", "versions", "weights", "yaml_lines", "cli_share"))}
TORCH_FREE |= {n for n in FILES if n.startswith(("bench.report", "bench.datasets", "bench.trackers"))}
#: what a part that a suite can name (a tokenizer, a loss, a metric, ...) may know of the harness
CONTRACT = {"bench.types", "bench.interfaces", "bench.registry", "bench.distributed", "bench.pretrained",
            "bench.errors", "bench.code_histogram", "bench.per_image", "bench.features", "bench.feature_sets",
            "bench.frechet", "bench.similarity", "bench.threads", "bench.image_dataset", "bench.image_files", "bench.crops",
            "bench.baseline", "bench.peer", "bench.format"}
PARTS = ("bench.losses", "bench.objectives", "bench.monitors", "bench.metrics", "bench.datasets",
         "bench.trackers", "bench.baselines", "bench.peers", "bench.discriminators", "implementations")
#: the loop and below, from the bottom up: a file imports only from lines above its own
LAYERS = [
    {"bench.errors", "bench.stopping", "bench.scheduler", "bench.resources", "bench.types", "bench.distributed",
     "bench.report.spec", "bench.terminal", "bench.networks", "bench.threads"},
    {"bench.similarity", "bench.files", "bench.registry", "bench.interfaces", "bench.yaml_lines", "bench.image_dataset", "bench.jobs",
     "bench.report.model", "bench.prepare", "bench.baseline", "bench.peer", "bench.download", "bench.format", "bench.versions"},
    {"bench.places", "bench.spec", "bench.code_histogram", "bench.per_image", "bench.originals",
     "bench.frechet", "bench.npz"},
    {"bench.results", "bench.protocol", "bench.weights", "bench.image_files", "bench.optim", "bench.site", "bench.timings"},
    {"bench.crops", "bench.costs", "bench.catalogue", "bench.oracle", "bench.stopwatch", "bench.runs", "bench.published", "bench.image_cache", "bench.data", "bench.train"},
    {"bench.load"},
    {"bench.pretrained"},
    {"bench.features", "bench.run", "bench.compare", "bench.provenance", "bench.curves", "bench.checkpoint", "bench.evaluate",
     "bench.together", "bench.validate", "bench.verify", "bench.submissions", "bench.task"},
    {"bench.init_from"},
    {"bench.structure", "bench.profile", "bench.view", "bench.levels", "bench.feature_sets", "bench.binder", "bench.build", "bench.diagnostics", "bench.launch", "bench.slurm"},
    {"bench.samples", "bench.score", "bench.suite", "bench.checked", "bench.submit"},
    {"bench.throughput", "bench.checkpoint_records", "bench.collect", "bench.preflight", "bench.sanity", "bench.schema"},
    {"bench.plan", "bench.points", "bench.reporting", "bench.share"},
    {"bench.execute", "bench.failures", "bench.follow"},
    {"bench.drive", "bench.explain"},
    {"bench.cli"},
    {"bench.cli_numbers", "bench.cli_checkpoints"},
    {"bench.cli_profile", "bench.cli_share", "bench.cli_view"},
    {"bench.__main__"},
]


def imported(path: Path, *, inside_functions: bool) -> set[str]:
    """Modules of this project, and `torch`, that a file imports; not those `if TYPE_CHECKING`."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found.update(full for alias in node.names if (full := f"{node.module}.{alias.name}") in FILES)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    heavy = ("torch", "torchvision", "lpips", "einops")
    return {m for m in found if m in FILES or m.partition(".")[0] in heavy}


def ours(name: str, *, inside_functions: bool = True) -> set[str]:
    return {m for m in imported(FILES[name], inside_functions=inside_functions) if m in FILES}


@cache
def reached(name: str) -> frozenset[str]:
    """All that importing a module loads."""
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            if module in FILES:
                todo += imported(FILES[module], inside_functions=False)
    return frozenset(seen)


def test_the_lists_name_modules_that_exist() -> None:
    named = {name for layer in LAYERS for name in layer} | TORCH_FREE | (CONTRACT - {"bench.pretrained"})
    assert named <= FILES.keys()


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_planning_launching_and_reporting_load_no_torch(name: str) -> None:
    heavy = {m for m in reached(name) if m not in FILES}
    assert not heavy, f"{name} reaches {sorted(heavy)}"


def test_the_walk_finds_torch_where_it_is() -> None:
    assert "torch" in reached("bench.train") and "torch" in reached("bench.execute")


def test_the_harness_imports_no_implementation() -> None:
    for name in FILES:
        if name.partition(".")[0] == "bench":
            assert not {m for m in ours(name) if m.partition(".")[0] == "implementations"}, name


def test_nobody_imports_a_tokenizer() -> None:
    tokenizers = {f"implementations.{p.stem}" for p in (ROOT / "implementations").glob("[!_]*.py")}
    assert tokenizers
    for name in FILES:
        assert not ours(name) & tokenizers, name


@pytest.mark.parametrize("name", sorted(n for n in FILES if n.startswith(PARTS)))
def test_parts_know_the_contract_and_their_own_kind_only(name: str) -> None:
    home = name.rpartition(".")[0]
    for module in ours(name) - CONTRACT:
        allowed = (module.startswith("implementations.") if name.startswith("implementations")
                   else module.rpartition(".")[0] == home
                   or (home == "bench.objectives" and module.startswith(("bench.losses", "bench.disc"))))
        assert allowed or module in PACKAGES, f"{name} imports {module}"


def test_files_import_from_lower_layers_only() -> None:
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for name, level in height.items():
        for module in ours(name):
            if module in height:
                assert height[module] < level, f"{name} imports {module}"
    flat = {n for n, path in FILES.items()
            if n.startswith("bench.") and n.count(".") == 1 and path.name != "__init__.py"}
    assert flat == {n for n in height if n.count(".") == 1}, "a module of bench has no layer yet"


def test_nothing_imports_the_command_line() -> None:
    assert {name for name in FILES if "bench.cli" in ours(name)} == {
        "bench.__main__", "bench.cli_checkpoints", "bench.cli_numbers", "bench.cli_profile", "bench.cli_share", "bench.cli_view"}
    assert {name for name in FILES if "bench.cli_numbers" in ours(name)} == {"bench.__main__", "bench.cli_profile"}
    assert [name for name in FILES if "bench.cli_profile" in ours(name)] == ["bench.__main__"]


DRIVER = """
import json, sys
sys.argv = ["bench", *json.loads(sys.argv[1])]
from bench.__main__ import main
code = 0
try:
    main()
except SystemExit as error:
    code = error.code or 0
heavy = {"torch", "torchvision", "lpips", "pandas", "seaborn"}
heavy = sorted({m.partition(".")[0] for m in sys.modules} & heavy)
print(json.dumps({"code": code, "heavy": heavy}), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [
    ["--help"], ["ls"], ["ls", "quantizers"], ["plan", "quickstart"],
    ["plan", "celeba_readme_table", "--json"],
    ["status", "quickstart"], ["run", "--help"], ["schema"], ["profile", "--help"], ["profile", "quantizers", "--help"], ["explain", "ssim"], ["verify", "celeba_codebook_size"], ["report", "quickstart"], ["plan", "quickstrat"],
], ids=" ".join)
def test_commands_that_need_no_torch_do_not_load_it(arguments: list[str], tmp_path: Path) -> None:
    if arguments[0] == "report":
        if not (ROOT / "results/quickstart/records.jsonl").is_file():
            pytest.skip("there are no records of quickstart here")
        arguments = [*arguments, "--reports", str(tmp_path)]
    if arguments[0] in ("plan", "status"):
        arguments = [*arguments, "--runs", str(tmp_path / "runs")]
    done = subprocess.run([sys.executable, "-c", DRIVER, json.dumps(arguments)], cwd=ROOT, text=True,
                          capture_output=True, timeout=60,
                          env=os.environ | {"BENCH_CACHE": str(tmp_path / "cache")})
    said = json.loads(done.stderr.splitlines()[-1])
    assert said == {"code": 2 if arguments[1:2] == ["quickstrat"] else 0, "heavy": []}, done.stderr

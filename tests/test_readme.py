"""The README shows what the code produces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")


def readme_tables() -> list[tuple[str, str]]:
    return re.findall(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", README, re.DOTALL)


def rows(text: str) -> list[str]:
    """The lines of a Markdown table and what is said under it, without headings."""
    return [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_readme_shows_a_table() -> None:
    assert readme_tables()


@pytest.mark.parametrize(("file", "shown"), readme_tables())
def test_the_readmes_table_is_the_rendered_one(file: str, shown: str) -> None:
    """One of the page's tables, with all that is said under it."""
    sections = re.split(r"^## .*$", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    rendered = [rows(section[section.index("|"):]) for section in sections]
    assert rows(shown) in rendered


def test_every_file_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_snippet_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny import small

    from bench.load import Opened, PretrainedTokenizer

    spec = small("tokenizer", "vqvae")
    monkeypatch.chdir(tmp_path)
    PretrainedTokenizer(Opened(spec.partial()(32).eval(), spec, 32, None, ())).save_pretrained("my_tokenizer")
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})


def test_every_shipped_suite_is_in_the_readme() -> None:
    for suite in (ROOT / "suites").glob("*.yaml"):
        assert f"`{suite.stem}`" in README, suite.stem


def test_the_commented_example_of_the_docs_is_a_valid_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.build import check_runs
    from bench.places import Places
    from bench.suite import Suite

    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.yaml").write_text(re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL).group(1))
    runs = Suite.load(tmp_path / "example.yaml").expand(Places.find())
    assert len(runs) == 21
    assert all(c.problem is None and c.skip is None for c in check_runs(runs).values())


def test_the_published_schema_is_the_current_one() -> None:
    import json

    from bench.schema import suite_schema

    published = json.loads((ROOT / "docs" / "suite.schema.json").read_text(encoding="utf-8"))
    assert published == json.loads(json.dumps(suite_schema())), "bench schema > docs/suite.schema.json"

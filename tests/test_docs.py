"""A page with a dead link, or a command that no page names, costs its reader the afternoon."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SOURCES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))])
MOST_TERMS = 25
MOST_WORDS = 900


def tool(name: str) -> ModuleType:
    """A module of `docs/tools`."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def links_of(text: str) -> list[str]:
    """Targets of a page's relative links and pictures, without those in code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]


def anchors_of(path: Path) -> set[str]:
    """Anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


def pages_in(nav: object) -> list[str]:
    """Pages that a part of the navigation names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages_in(part)]  # type: ignore[union-attr]


@pytest.mark.parametrize("page", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    made = DOCS / tool("site").CLI_PAGE
    for link in links_of(page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target == made or target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md" and target != made:
            assert anchor in anchors_of(target), f"{page.name}: {link}"


def test_the_navigation_names_every_page_and_no_other() -> None:
    site = tool("site")
    named = pages_in(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    mounted = {page for page in site.MOUNTED if not page.startswith("benchmarks/")}
    assert sorted(named) == sorted({*written, *mounted, site.CLI_PAGE})


def test_the_reference_has_every_command_with_every_option() -> None:
    from jobs.commands import COMMANDS

    page = tool("cli_reference").cli_reference()
    sections = dict(re.findall(r"^## isthmus (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == [command.name for command in COMMANDS]
    for command in COMMANDS:
        flags = set(re.findall(r"^\| `--([a-z0-9-]+)`", sections[command.name], re.MULTILINE))
        assert flags == {name.replace("_", "-") for name in command.config.model_fields}, command.name


def test_the_glossary_stays_short() -> None:
    """A page that needs more private terms needs fewer concepts."""
    glossary = (DOCS / "concepts.md").read_text().partition("## Glossary")[2]
    terms = re.findall(r"^\| ([a-z ]+) \| (?!meaning)", glossary, re.MULTILINE)
    assert terms == sorted(terms)
    assert 10 < len(terms) <= MOST_TERMS


def test_every_term_of_the_glossary_is_used_outside_of_it() -> None:
    """A term that no page uses is one more word to learn, for nothing."""
    above, _, glossary = (DOCS / "concepts.md").read_text().partition("## Glossary")
    pages = [path.read_text() for path in SOURCES if path.name != "concepts.md"]
    text = " ".join(" ".join([above, *pages]).lower().split())
    terms = re.findall(r"^\| ([a-z ]+) \| (?!meaning)", glossary, re.MULTILINE)
    assert not [term for term in terms if not re.search(rf"\b{term}s?\b", text)]


def test_the_site_needs_no_network() -> None:
    """Fonts, scripts and pictures of other hosts would tell them what is read, and be missing offline."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False
    assert not [link for key in ("extra_css", "extra_javascript") for link in config.get(key, []) if "//" in link]
    loads = re.compile(r"!\[[^\]]*\]\(https?:|<(?:script|img|iframe|link)\b|^```mermaid", re.MULTILINE)
    assert not [page.name for page in SOURCES if loads.search(page.read_text())]


def test_the_readme_is_read_in_some_minutes() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


@pytest.mark.parametrize("page", ["architecture.md", "concepts.md", "promises.md"])
def test_the_files_that_a_page_names_are_there(page: str) -> None:
    """A map with a street that was renamed is worse than none."""
    text = re.sub(r"^.*\(new\).*$", "", (DOCS / page).read_text(), flags=re.MULTILINE)
    named = set(re.findall(r"`((?:encoders|pipelines|jobs|tests|docs)/[\w/.]+)`", text))
    named = {name for name in named if "NAME" not in name and not name.endswith("test_source_arrow_ipc.py")}
    assert len(named) > 5
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_links_of_the_repository_become_links_of_the_site() -> None:
    relinked = tool("site").relinked
    assert relinked("[c](../CHANGELOG.md)", "concepts.md") == "[c](changelog.md)"
    assert relinked("[f](results/embed.md)", "benchmarks.md") == "[f](benchmarks/embed.md)"
    assert relinked("[d](docs/decisions.md#x)", "contributing.md") == "[d](decisions.md#x)"
    assert relinked("[s](search_clipart.sh)", "examples.md") == "s (`examples/search_clipart.sh`)"

"""The hook of mkdocs: pages that are made, and pages whose source is elsewhere in the repository.

`reference/cli.md` is made from the table of commands. CHANGELOG.md and the like stay where readers of the repository
look for them, and are pages of the site too. Links between them hold in both places.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[2]
CLI_PAGE = "reference/cli.md"
# Page of the site: its source, relative to the root of the repository.
MOUNTED = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "examples.md": "examples/README.md",
    "benchmarks.md": "benchmarks/README.md",
} | {f"benchmarks/{path.name}": f"benchmarks/results/{path.name}" for path in ROOT.glob("benchmarks/results/*.md")}
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)((?:#[^)\s]*)?)(?=\))")


def relinked(text: str, page: str) -> str:
    """The text of a page, its relative links to files of the repository made links to pages of the site.

    A link to a file that is no page becomes text that names the file.
    """
    source = MOUNTED.get(page, f"docs/{page}")
    pages = {file: name for name, file in MOUNTED.items()}

    def target(match: re.Match[str]) -> str:
        file = _in_repository(source, match[1])
        name = pages.get(file, file.removeprefix("docs/") if file.startswith("docs/") else None)
        if name is None:
            return match[0]
        return posixpath.relpath(name, posixpath.dirname(page) or ".") + match[2]

    text = _LINK.sub(target, text)
    # What is left points out of the site, and becomes text.
    outside = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s:]+)\)")

    def plain(match: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(page), match[2]))
        is_of_site = file in MOUNTED or file == CLI_PAGE or _is_in_docs(file)
        return match[0] if is_of_site else f"{match[1]} (`{_in_repository(source, match[2])}`)"

    return outside.sub(plain, text)


def _is_in_docs(file: str) -> bool:
    return not file.startswith("..") and (ROOT / "docs" / file).is_file()


def _in_repository(source: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere or are made."""
    from mkdocs.structure.files import File, InclusionLevel

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.path.insert(0, str(ROOT))
    from cli_reference import cli_reference

    files.append(File.generated(config, CLI_PAGE, content=cli_reference()))
    for page, source in MOUNTED.items():
        made = File.generated(config, page, content=(ROOT / source).read_text())
        if page.startswith("benchmarks/"):
            made.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(made)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links of the repository links of the site."""
    return relinked(markdown, page.file.src_uri)

"""What the site needs beside the pages: files of the repository outside of docs/, and links in docstrings.

`mkdocs.yml` uses it twice: as a hook of mkdocs, and as an extension of griffe, which reads the docstrings.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from griffe import Extension
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# Files outside of docs/ that become pages, or files next to them.
ADDED = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "method_comparison/README.md": "comparison.md",
}
for file in ROOT.glob("examples/notebooks/*.ipynb"):
    ADDED[f"examples/notebooks/{file.name}"] = f"notebooks/{file.name}"
_LINK = re.compile(r"\[([^\]\n]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\]")


def on_files(files, config):
    """Add the files from outside of docs/."""
    for source, page in ADDED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links out of docs/ to the pages that were added; of links to other files the text stays."""
    docs = Path(config.docs_dir)
    sources = {page: source for source, page in ADDED.items()}
    is_added = page.file.src_uri in sources
    folder = (ROOT / sources[page.file.src_uri] if is_added else docs / page.file.src_uri).parent

    def follow(match: re.Match) -> str:
        text, link, anchor = match[1], match[2], match[3] or ""
        target = Path(os.path.normpath(folder / link))
        if "://" in link or not target.exists():
            return match[0]
        if target.is_relative_to(docs):
            place = target.relative_to(docs).as_posix()
        else:
            place = ADDED.get(target.relative_to(ROOT).as_posix())
        if place is None:
            return text
        return f"[{text}]({os.path.relpath(place, Path(page.file.src_uri).parent)}{anchor})"

    return _LINK.sub(follow, markdown)


class References(Extension):
    """Make links of what docstrings name in the form [`name`] or [`~package.name`]."""

    def on_instance(self, *, obj, **kwargs) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = _REFERENCE.sub(lambda match: _reference(match, obj), obj.docstring.value)


def _reference(match: re.Match, obj) -> str:
    is_short, name = match.groups()
    try:
        target = obj.resolve(name)
    except Exception:
        target = name
    shown = name.rpartition(".")[2] if is_short else name
    # Optional: what is not in the reference stays plain text.
    return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'

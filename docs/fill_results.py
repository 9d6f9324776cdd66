"""Put the tables of results/ into docs/results.md: `python docs/fill_results.py`, from the root of the repository.

What stands between `<!-- table NAME -->` and `<!-- end -->` is replaced by the table of results/NAME/table.md, so that
no number of a table is typed by hand. Everything else of the page is written by people and stays.
"""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"(<!-- table (?P<name>\S+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def fill(page: str, results: Path) -> str:
    """The page with the tables that there are; a study without one is said to be not run yet.

    Args:
        page: The page in Markdown.
        results: The folder of the studies' folders.
    """

    def block(match: re.Match[str]) -> str:
        path = results / match["name"] / "table.md"
        lines = path.read_text().splitlines() if path.exists() else []
        # A study's description stands above its first table; the page has words of its own.
        rows = [number for number, line in enumerate(lines) if line.startswith("|")]
        table = "\n".join(lines[rows[0] : rows[-1] + 1]) if rows else ""
        return f"{match[1]}{table or '*Not run yet.*'}\n{match[3]}"

    return _BLOCK.sub(block, page)


if __name__ == "__main__":
    path = Path("docs/results.md")
    path.write_text(fill(path.read_text(), Path("results")))

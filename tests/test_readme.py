"""What README and docs say holds: their Python code runs, but for blocks that say why they cannot."""

import ast
import re
from pathlib import Path

import pytest

import point_peft_hf
from point_peft_hf.training import METHODS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
PAGES = {"README.md": ROOT / "README.md", **PAGES}
BLOCKS = {
    f"{name} {index}": block
    for name, path in PAGES.items()
    for index, block in enumerate(
        re.findall(r"(?<!-->\n)```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    )
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.filterwarnings("ignore:.*1 of 11 files are skipped")
def test_code_block(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[name], f"block {name}", "exec"), {"__name__": "readme"})


def test_quoted_messages_are_those_of_the_code():
    """Troubleshooting quotes the fixed parts of messages, with an ellipsis for the others."""
    texts = []
    for file in Path(point_peft_hf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    page = " ".join(PAGES["troubleshooting.md"].read_text(encoding="utf-8").split())
    quotes = re.findall(r'\*\*"(.*?)"', page)
    assert len(quotes) > 10
    for quote in quotes:
        parts = [part.strip() for part in quote.split("...") if part.strip()]
        assert any(all(part in text for part in parts) for text in texts), quote


def test_the_table_of_methods_is_that_of_the_code():
    page = PAGES["methods.md"].read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`(\w+)`\]\S+ \| .* \| (\S+) \| (\S+) \|$", page, flags=re.MULTILINE)
    assert {name: (float(rate), float(warmup)) for name, rate, warmup in rows} == {
        name: (method.learning_rate, method.warmup_ratio) for name, method in METHODS.items()
    }


def test_the_readme_names_all_methods_and_their_configurations():
    page = PAGES["README.md"].read_text(encoding="utf-8")
    table = page.partition("## Methods\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .* \|(?: `(\w+)`)? \|$", table, flags=re.MULTILINE)
    assert rows == [(name, getattr(method.config_class, "__name__", "")) for name, method in METHODS.items()]


def test_the_readme_stays_short():
    assert len(PAGES["README.md"].read_bytes()) <= 12_000

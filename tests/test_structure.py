"""The imports of the package run one way."""

import ast
from pathlib import Path

import pytest

import point_peft_hf

ROOT = Path(point_peft_hf.__file__).parent
# A part of the package, and the parts that it may import.
ALLOWED = {
    "ops": set(),
    "layers": set(),
    "locks": set(),
    "pretrained": set(),
    "tokens": {"ops"},
    "voxels": {"ops"},
    "slots": {"layers", "ops", "tokens", "voxels"},
    "data": {"extras", "ops"},
    "attaching": set(),
    "io": {"attaching", "pretrained"},
    "models": {"attaching", "io", "layers", "ops", "slots", "tokens", "voxels"},
    "tuners": {"attaching", "io", "layers", "ops", "slots", "tokens", "voxels"},
    "auto": {"io", "models", "pretrained"},
    "foreign": {"models", "slots", "tokens"},
    "scenes": {"data", "models", "visualization"},
    "extras": set(),
    "export": {"data", "extras", "models", "ops"},
    "commands": {"auto", "data", "export", "extras", "io", "models", "scenes", "training", "visualization"},
    "__main__": {"commands"},
    "training": {
        "auto",
        "data",
        "io",
        "layers",
        "locks",
        "models",
        "ops",
        "pretrained",
        "scenes",
        "tuners",
        "visualization",
    },
    "visualization": {"data", "extras", "models", "ops", "slots", "tuners"},
}


def imported_parts(file: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            if node.level:
                package = file.relative_to(ROOT.parent).with_suffix("").parts[: -node.level]
                names = [".".join([*package, name]) for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(f"{ROOT.name}."):
                parts.add(name.split(".")[1])
    return parts


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_it_may(part):
    files = [file for file in ROOT.rglob("*.py") if part_of(file) == part]
    assert files
    for file in files:
        assert imported_parts(file) - {part} <= ALLOWED[part], file


def test_every_part_is_listed():
    assert {part_of(file) for file in ROOT.rglob("*.py")} - {"__init__"} == set(ALLOWED)

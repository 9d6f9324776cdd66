"""The documentation holds together: pages, links, and the numbers that pages of methods have from elsewhere."""

import contextlib
import importlib
import importlib.util
import inspect
import io
import os
import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

import point_peft_hf
from point_peft_hf.commands import main
from point_peft_hf.training import METHODS, method_config
from point_peft_hf.training.methods import SCENE_METHODS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
OTHERS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "method_comparison/README.md")
LINKING = PAGES | {f"../{name}": ROOT / name for name in OTHERS}
# Pages of the site that are files outside of docs/.
ADDED = ("contributing.md", "changelog.md", "comparison.md")
METHOD_PAGES = [name for name in PAGES if name.startswith("methods/")]


def without_code(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """What headings are called in links, as GitHub has it."""
    headings = re.findall(r"^#+ (.*)$", without_code(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def options_of(program: str) -> set[str]:
    """The options that `--help` of a program lists: of "point-peft COMMAND", or of a script."""
    printed, (first, *rest) = io.StringIO(), program.split()
    option = "--help_all" if rest == ["train"] or first == "examples/train.py" else "--help"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [first, *rest, option])
        patch.syspath_prepend(str((ROOT / first).parent))
        run = (
            partial(main, [*rest, option]) if rest else partial(runpy.run_path, str(ROOT / first), run_name="__main__")
        )
        with pytest.raises(SystemExit, match="0"):
            run()
    return set(re.findall(r"--\w+", printed.getvalue()))


def test_options_in_commands_exist():
    """A command that a page shows can be copied: no option of it was renamed since."""
    wanted: dict[str, dict[str, str]] = {}
    for name, path in LINKING.items():
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for program, command in re.findall(
            r"(point-peft [a-z]\w+|(?:examples|method_comparison)/\w+\.py)((?: [^`\n|&#]*)?)", text
        ):
            known = wanted.setdefault(program, {})
            known |= dict.fromkeys(re.findall(r"(?<![\w-])--[a-z]\w*", command), name)
    assert len(wanted) > 10
    unknown = []
    for program, options in wanted.items():
        if options:
            known = options_of(program)
            unknown += [f"{name}: {program} {option}" for option, name in options.items() if option not in known]
    assert not unknown


@pytest.mark.parametrize("name", LINKING)
def test_links_lead_somewhere(name):
    path = LINKING[name]
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        target = path.parent / target if target else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert sorted(re.findall(r"[\w/]+\.md", navigation)) == sorted([*PAGES, *ADDED])


def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed: pip install -e ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = "".join(page.read_text(encoding="utf-8") for page in (tmp_path / "api").rglob("index.html"))
    documented = {name.rpartition(".")[2] for name in re.findall(r'id="(point_peft_hf\.[\w.]+)"', pages)}
    for package in ("", ".tuners", ".models", ".data", ".training", ".scenes", ".io", ".visualization"):
        module = importlib.import_module(f"point_peft_hf{package}")
        values = {name: getattr(module, name) for name in module.__all__}
        # Constants have no docstrings.
        public = {name for name, value in values.items() if inspect.isclass(value) or inspect.isfunction(value)}
        assert public <= documented, package


def test_every_method_has_a_page_that_the_overview_links_to():
    links = dict(re.findall(r"\[`(\w+)`\]\((methods/\w+\.md)", PAGES["methods.md"].read_text(encoding="utf-8")))
    assert set(links) == {*METHODS, *SCENE_METHODS}
    assert set(links.values()) == set(METHOD_PAGES)
    for name, page in links.items():
        assert f"`{name}`" in PAGES[page].read_text(encoding="utf-8")


SECTIONS = {"formula", "what-is-trained", "when-to-take-it", "cost", "published-numbers", "example", "configuration"}


# The page of the baselines has a section for each of them instead.
@pytest.mark.parametrize("name", [name for name in METHOD_PAGES if name != "methods/baselines.md"])
def test_pages_of_methods_have_the_same_sections(name):
    assert anchors(PAGES[name]) >= SECTIONS


def tables(path: Path) -> list[tuple[list[str], list[list[str]]]]:
    """Tables of a page: the names of the columns, and the cells of each row."""
    found = []
    for text in re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE):
        names, _, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines())
        found.append((names, rows))
    return found


# Page, configuration, and the numbers of trained parameters with either data set.
PARAMETERS = [
    (name, *row[names.index("ScanObjectNN, 15 classes") - 1 :][:3], row[0])
    for name in METHOD_PAGES
    for names, rows in tables(PAGES[name])
    if "ScanObjectNN, 15 classes" in names
    for row in rows
]


@pytest.mark.parametrize(("page", "configuration", "scanobjectnn", "modelnet40", "first"), PARAMETERS)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Unsupported layer type")
def test_numbers_of_parameters(page, configuration, scanobjectnn, modelnet40, first):
    def trainable(num_labels: int, num_groups: int) -> str:
        with torch.device("meta"):
            config = point_peft_hf.PointMAEConfig(num_labels=num_labels, num_groups=num_groups)
            model = point_peft_hf.PointMAEForClassification(config)
            if page == "methods/baselines.md":
                adapter = method_config(first.strip("`"), model)
            else:
                adapter = eval(configuration.strip("`"), {**vars(point_peft_hf)})
            model = model if adapter is None else get_peft_model(model, adapter)
        return f"{sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad):,}"

    assert (trainable(15, 128), trainable(40, 64)) == (scanobjectnn, modelnet40)


def test_the_tables_of_parameters_are_found():
    without = {"methods/voxel_adapter.md", "methods/patch_prompt.md"}
    assert {page for page, *_ in PARAMETERS} == {*METHOD_PAGES} - without


def test_costs_are_those_that_were_measured():
    """Pages of methods repeat three columns of a table in performance.md."""
    measured, repeated = {}, {}
    for (data, *names), rows in tables(PAGES["performance.md"]):
        if names[1:6:2] == ["/ full"] * 3 and "GFLOP" in names:
            measured |= {(row[0], data): [row[2], row[4], row[6]] for row in rows}
    for page in METHOD_PAGES:
        for (method, *names), rows in tables(PAGES[page]):
            if names == ["step, of full", "products, of full", "kept, of full"]:
                repeated |= {(method, row[0]): row[1:] for row in rows}
    assert len(repeated) == 18
    assert repeated == {key: measured[key] for key in repeated}

import csv
import json
import re
import shutil
import subprocess

import pytest
import report
from experiments import find_experiments
from records import Result

LORA = {"peft_type": "LORA", "r": 2}
# Scores of two seeds.
SCORES = {"full/default": (0.5, 0.6), "linear/default": (0.55, 0.65), "lora/r_2": (0.98, 1.0)}
TRAINABLE = {"full/default": 9000, "linear/default": 100, "lora/r_2": 200}


def record_of(run, score, trainable, data="clouds"):
    return {
        **run._asdict(),
        "validation": score,
        "score": "accuracy",
        "test": {"accuracy": score, "mean_class_accuracy": score / 2},
        "fingerprints": {"data": data},
        "parameters": {"trainable": trainable},
        "file_bytes": 4 * trainable,
        "peak_memory_mib": None,
        "corruption": {"noise": [0.5, 0.3], "outliers": [0.1, 0.1]},
        "probe": 0.9,
        "probe_before": 0.95,
    }


@pytest.fixture
def root(make_task, tmp_path):
    """A folder of one task with results that were made up."""
    task = make_task(
        tmp_path / "all" / "tiny",
        {
            "full/default": (None, {}),
            "linear/default": (None, {}),
            "lora/r_2": (LORA, {}),
            "lora/never_run": (LORA, {}),
        },
        references=["full/default", "linear/default"],
        learning_rates=None,
        search_seeds=None,
        description="Tiny </script> & quick.",
    )
    for experiment in find_experiments([task]):
        if experiment.id in SCORES:
            result = Result(experiment.result_path)
            result.begin(experiment)
            for run, score in zip(
                experiment.final_runs(experiment.chosen_rate({})), SCORES[experiment.id], strict=True
            ):
                result.add(record_of(run, score, TRAINABLE[experiment.id]), {"device": "cpu"})
    return task.parent


def rows_of(root):
    return report.summarize(find_experiments([root / "tiny"])[0].task)


def test_rows_by_hand(root):
    rows = rows_of(root)
    assert [row.experiment.id for row in rows] == ["lora/r_2", "linear/default", "full/default"]
    assert [row.label for row in rows] == ["lora/r_2", "linear", "full"]
    lora, linear, full = rows
    assert lora.values["score"].mean == pytest.approx(99)
    # 12.706 times the standard error of 1 would reach 111.7.
    assert lora.values["score"][1:3] == (pytest.approx(99 - 12.706, abs=1e-2), 100)
    assert linear.values["difference to full"].mean == pytest.approx(5)
    assert linear.values["difference to full"].high == pytest.approx(5)  # the seeds have it in common
    assert "difference to full" not in full.values
    assert lora.values["corrupted"].mean == pytest.approx(25)
    assert lora.values["probe_change"].mean == pytest.approx(-5)
    assert lora.values["by_class"].mean == pytest.approx(49.5)
    assert lora.values["file_mb"].mean == pytest.approx(8e-4)
    assert "peak_mib" not in lora.values
    assert lora.seeds == 2


def test_the_tables(root):
    rows = rows_of(root)
    head, _, first, *_, last = report.markdown(rows).splitlines()
    columns = [cell.strip() for cell in head.split("|")[1:-1]]
    assert columns[:6] == [
        *("", "test accuracy or mIoU (%)", "mean over classes (%)", "validation (%)"),
        *("difference to full", "difference to linear"),
    ]
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert cells[:2] == ["lora/r_2", "99.0 (86.3 to 100.0)"]
    assert cells[columns.index("probe, change")] == "-5.0 ± 0.0"
    assert cells[-1] == "2"
    assert last.split("|")[columns.index("difference to full") + 1].strip() == ""
    tabular = report.latex(rows)
    assert tabular.startswith(r"\begin{tabular}{lrrr")
    assert r"lora/r\_2 & 99.0 (86.3 to 100.0) &" in tabular
    assert r"$\pm$" in tabular
    assert all(line.count(" & ") == len(columns) - 1 for line in tabular.splitlines() if line.endswith(r"\\"))


def test_everything_is_written(root, capsys):
    report.main([str(root)])
    assert "tiny/all_labels" in capsys.readouterr().out
    assert (root / "overview.png").read_bytes().startswith(b"\x89PNG")
    assert "| lora/r_2 " in (root / "tiny" / "tables.md").read_text()
    assert r"\midrule" in (root / "tiny" / "tables.tex").read_text()
    with (root / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["experiment"] for row in rows] == ["lora/r_2", "linear/default", "full/default"]
    assert (rows[0]["score"], rows[0]["score_high"]) == ("99.0", "100.0")
    assert rows[2]["difference to full"] == ""
    text = (root / "index.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["rows"][0]["values"]["score"][0] == 99
    assert data["tasks"] == {"tiny": "Tiny </script> & quick."}
    assert "http" not in text.replace("http://www.w3.org", "")


def test_results_on_other_clouds_are_not_compared(root):
    path = root / "tiny" / "results" / "full--default.json"
    path.write_text(path.read_text().replace('"data":"clouds"', '"data":"others"'))
    with pytest.raises(ValueError, match="full/default and linear/default have other clouds for seed 0"):
        rows_of(root)


def test_runs_at_a_rate_that_is_not_chosen_do_not_count(root):
    result = Result(root / "tiny" / "results" / "full--default.json")
    result.runs.append({**result.runs[0], "learning_rate": 7.0, "seed": 5})
    result.save()
    assert rows_of(root)[-1].seeds == 2


def test_without_a_result_it_says_so(make_task, tmp_path):
    make_task(tmp_path / "all" / "tiny", {"full/default": (None, {})})
    with pytest.raises(ValueError, match="has a result yet"):
        report.main([str(tmp_path / "all")])
    (tmp_path / "file.json").write_text('{"runs": []}')
    with pytest.raises(ValueError, match="is not a result: it lacks settings"):
        Result(tmp_path / "file.json")


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 1), (2, 3), (3, 2)], [0, 1]),
        ([(1, 1), (1, 2)], [1]),
        ([(2, 5), (1, 5)], [1]),
        ([(3, 3)], [0]),
    ],
)
def test_the_pareto_front_by_hand(points, front):
    assert report.pareto_front(points) == front


ACTIONS = """<script>
const first = () => document.querySelector("tbody td").textContent;
const said = {rows: document.querySelectorAll("tbody tr").length, first: first()};
said.front = [...document.querySelectorAll("td.front")].map(cell => cell.textContent).sort();
said.cell = document.querySelectorAll("tbody td")[1].textContent;
document.querySelector('th[data-key="trainable"]').click();
document.querySelector('th[data-key="trainable"]').click();
said.smallest = first();
const move = new MouseEvent("mousemove", {bubbles: true, clientX: 9, clientY: 9});
document.querySelector("#plot [data-row]").dispatchEvent(move);
said.tip = document.getElementById("tip").textContent;
document.getElementById("method").value = "lora";
document.getElementById("method").dispatchEvent(new Event("input"));
said.filtered = document.querySelectorAll("tbody tr").length;
URL.createObjectURL = blob => {
  blob.text().then(text => { said.csv = text; document.title = JSON.stringify(said); });
  return "#";
};
document.getElementById("csv").click();
</script>"""


def test_the_page_in_a_browser(root, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    report.main([str(root)])
    (tmp_path / "page.html").write_text((root / "index.html").read_text() + ACTIONS)
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=2000", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    said = json.loads(re.search("<title>(.*?)</title>", dom, re.DOTALL)[1].replace("&amp;", "&"))
    assert (said["rows"], said["first"], said["cell"]) == (3, "lora/r_2", "99.0 (86.3 to 100.0)")
    assert said["front"] == ["linear/default", "lora/r_2"]
    assert said["smallest"] == "linear/default"
    assert "run.py method_comparison/tiny/experiments/" in said["tip"]
    assert said["filtered"] == 1
    header, line = csv.reader(said["csv"].splitlines())
    assert dict(zip(header, line, strict=True))["score_high"] == "100"

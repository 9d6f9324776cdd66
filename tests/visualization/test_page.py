import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from point_peft_hf.visualization import Markers, PointColoring, cloud_page, save_cloud_page
from point_peft_hf.visualization.palette import OKABE_ITO, category_colors, to_rgb

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(50, 3))
PARTS = np.arange(50) % 3
CENTERS = RNG.normal(size=(4, 3))


def make_page(title="A cup", name="handle"):
    parts = PointColoring("part", PARTS, ["body", name, "foot"], markers=[Markers("centre", CENTERS, "#d55e00")])
    return cloud_page(POINTS, [parts, PointColoring("height", POINTS[:, 1], unit="m")], title)


def read_scene(page):
    return json.loads(re.search(r'<script id="scene" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def decode(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_page_holds_exactly_what_was_given():
    scene = read_scene(make_page())
    parts, height = scene["colorings"]
    assert (decode(scene["positions"], "<f4").reshape(-1, 3) == POINTS.astype(np.float32)).all()
    assert (decode(parts["values"], "<u2") == PARTS).all()
    assert (decode(height["values"], "<f4") == POINTS[:, 1].astype(np.float32)).all()
    assert (decode(parts["markers"][0]["positions"], "<f4").reshape(-1, 3) == CENTERS.astype(np.float32)).all()
    assert parts["categories"] == ["body", "handle", "foot"]
    assert height["label"] == "height (m)"
    assert scene["count"] == 50


def test_the_page_loads_nothing_from_elsewhere():
    page = make_page()
    assert not re.search(r"https?:|//[a-z]|<link|@import|url\(|\bsrc=|fetch\(|XMLHttpRequest|importScripts", page)
    assert "__DATA__" not in page
    assert "__SCRIPT__" not in page


@pytest.mark.parametrize("text", ["</script><b>", "a & b < c", "__DATA__ __SCRIPT__", "Tür “№”\u2028", r"\u003c \1"])
def test_names_and_titles_stay_text(text):
    page = make_page(title=text, name=text)
    scene = read_scene(page)
    assert scene["title"] == text
    assert scene["colorings"][0]["categories"][1] == text
    assert page.count("</script>") == 2


def test_100_000_points_make_a_page_of_a_few_megabytes(tmp_path):
    points = RNG.normal(size=(100_000, 3))
    file = save_cloud_page(points, [PointColoring("x", points[:, 0])], tmp_path / "new" / "cloud.html")
    assert 1.9e6 < file.stat().st_size < 3e6


def test_a_browser_shows_the_legend(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser: install chromium")
    file = tmp_path / "cloud.html"
    file.write_text(make_page(), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    shown = subprocess.run(
        [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "A cup<small> 50 points</small>" in shown
    entries = re.findall(r'</i>(\w+)<span class="count">(\d+)</span>', shown)
    assert entries == [("body", "17"), ("handle", "17"), ("foot", "16"), ("centre", "4")]


def test_shares_of_classes_are_in_the_page():
    ranked = [("cup", 0.75), ("<b>", 0.25)]
    scene = read_scene(cloud_page(POINTS, [PointColoring("class", np.zeros(50, int), ["cup", "<b>"], shares=ranked)]))
    assert scene["colorings"][0]["shares"] == [["cup", 0.75], ["<b>", 0.25]]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros(49), {}, r"'x' has 49 values for 50 points"),
        (np.full(50, np.nan), {}, "not all finite"),
        (np.zeros((50, 2)), {}, r"shape \(num_points,\).*\(50, 2\)"),
        (np.full(50, 3), {"categories": ["a", "b", "c"]}, "from 3 to 3, but there are categories 0 to 2"),
        (np.zeros(50), {"categories": ["a"]}, "must be indices of its 1 categories, got float64"),
        (np.zeros(50, int), {"categories": ["a"], "colors": ["#000000", "#ffffff"]}, "1 categories and 2 colours"),
    ],
)
def test_values_that_do_not_fit_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        cloud_page(POINTS, [PointColoring("x", values, **options)])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((50, 2)), r"shape \(num_points, 3\).*\(50, 2\)"),
        (np.zeros((0, 3)), "at least one point"),
        (np.full((50, 3), np.inf), "50 points with NaN or infinite coordinates"),
    ],
)
def test_clouds_that_cannot_be_drawn_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        cloud_page(points, [PointColoring("x", np.zeros(50))])


def test_a_cloud_wants_something_to_be_coloured_by():
    with pytest.raises(ValueError, match="at least one PointColoring"):
        cloud_page(POINTS, [])


def test_colours_of_24_categories_differ():
    colors = category_colors(24)
    assert tuple(colors[:8]) == OKABE_ITO
    distances = np.linalg.norm(to_rgb(colors)[:, None] - to_rgb(colors), axis=-1) + 2 * np.eye(24)
    assert distances.min() > 0.08

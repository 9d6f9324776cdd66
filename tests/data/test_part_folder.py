import numpy as np
import pytest

from point_peft_hf.data import PointCloudError, load_dataset
from point_peft_hf.data.part_files import read_labelled_cloud


@pytest.fixture
def cloud(rng):
    return rng.normal(size=(12, 3)).astype(np.float32), np.arange(12) // 4


def ply(points, labels, kind, name="label"):
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    header = f"ply\nformat {kind} 1.0\nelement vertex {len(points)}\n{axes}property uchar red\nproperty int {name}\n"
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    if kind == "ascii":
        rows = "\n".join(
            f"{x:.7f} {y:.7f} {z:.7f} 255 {label}" for (x, y, z), label in zip(points, labels, strict=True)
        )
        return (header + rows + "\n3 0 1 2\n").encode()
    order = "<" if "little" in kind else ">"
    fields = [(axis, f"{order}f4") for axis in "xyz"] + [("red", "u1"), ("label", f"{order}i4")]
    rows = np.zeros(len(points), fields)
    for column, axis in enumerate("xyz"):
        rows[axis] = points[:, column]
    rows["label"] = labels
    return header.encode() + rows.tobytes() + bytes([3]) + np.arange(3, dtype=f"{order}i4").tobytes()


def write(path, points, labels):
    """Write a file with labels; what comes before the first dot says in which way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    way, table = path.name.partition(".")[0], np.column_stack([points, labels])
    if path.suffix == ".ply":
        kind = f"binary_{way}_endian" if way in ("little", "big") else "ascii"
        path.write_bytes(ply(points, labels, kind, "scalar_Label" if way == "cloudcompare" else "label"))
    elif path.suffix == ".npz":
        np.savez(path, points=points, Labels=labels)
    elif way == "beside":
        np.savetxt(path.with_suffix(".seg"), labels, "%d")
        np.save(path, points) if path.suffix == ".npy" else np.savetxt(path, points)
    elif path.suffix == ".npy":
        np.save(path, table)
    elif way == "named":
        table = np.column_stack([labels, points, points])
        np.savetxt(path, table, delimiter=",", header="Part,x,y,z,r,g,b", comments="")
    else:
        np.savetxt(path, np.column_stack([points, points, labels]) if way == "normals" else table)


FILES = (
    *("ascii.ply", "little.ply", "big.ply", "cloudcompare.ply", "arrays.npz", "table.npy", "beside.npy", "beside.xyz"),
    *("plain.txt", "normals.txt", "named.csv"),
)


@pytest.mark.parametrize("name", FILES)
def test_every_way_to_write_labels(name, tmp_path, cloud):
    points, labels = cloud
    labels = np.where(labels == 2, -1, labels)
    write(tmp_path / name, points, labels)
    read = read_labelled_cloud(tmp_path / name)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read[:, :3], points, atol=1e-6)
    np.testing.assert_array_equal(read[:, 3], np.where(labels < 0, -100, labels))


def test_points_that_are_not_finite(tmp_path, cloud):
    points, labels = cloud
    points[5] = np.nan
    write(tmp_path / "plain.txt", points, labels)
    with pytest.raises(PointCloudError, match="plain.txt: 1 of 12 points have NaN or infinite"):
        read_labelled_cloud(tmp_path / "plain.txt")
    assert (
        read_labelled_cloud(tmp_path / "plain.txt", drop_invalid=True)[:, 3].tolist() == np.delete(labels, 5).tolist()
    )


def test_errors(tmp_path, cloud):
    points, labels = cloud

    def expect(message, name="cloud.txt"):
        with pytest.raises(PointCloudError, match=message):
            read_labelled_cloud(tmp_path / name)

    expect("no such file")
    np.savetxt(tmp_path / "cloud.txt", np.column_stack([points, points]))
    expect(r"has 6 columns without names; .* or a file cloud.seg with one number a line")
    np.savetxt(tmp_path / "cloud.txt", np.column_stack([points, points[:, 0]]))
    expect("labels must be whole numbers, got .*; is the last column the label")
    np.savetxt(tmp_path / "cloud.txt", np.column_stack([points, labels]), header="x y z density", comments="")
    expect(r"no column is named as labels are \(part, .*; it has \['x', 'y', 'z', 'density'\]")
    np.savetxt(tmp_path / "cloud.seg", labels[:5], "%d")
    expect("has 12 points, but 5 labels")
    (tmp_path / "cloud.seg").write_text("0\nleg\n")
    expect("cloud.seg: must hold one number a line")
    np.savetxt(tmp_path / "cloud.seg", np.column_stack([labels, labels]), "%d")
    expect("cloud.seg: must hold one number a line, got 2 columns")
    np.savez(tmp_path / "arrays.npz", points=points)
    expect(r"has no array named part, .*; it has \['points'\]", "arrays.npz")
    (tmp_path / "bare.ply").write_bytes(ply(points, labels, "ascii", "temperature"))
    expect(r"no vertex property is named as labels are .*'temperature'\]", "bare.ply")
    (tmp_path / "mesh.obj").write_text("v 0 0 0\nv 1 0 0\n")
    expect("mesh.obj: has no labels; write them to mesh.seg", "mesh.obj")


def make_folder(root, rng, layout):
    """Three clouds of each of two categories, two of them to train on; or of one category."""
    for split, count in (("train", 2), ("test", 1)):
        for category, first in (("lamp", 0), ("mug", 2)):
            for index in range(count):
                points, labels = rng.normal(size=(10, 3)), first + np.arange(10) % 2
                place = {
                    "splits": f"{split}/{category}/{FILES[index]}",
                    "categories": f"{category}/{split}_{index}.txt",
                    "one category": f"{split}/{category}_{index}.txt",
                    "one folder": f"{split}_{category}_{index}.ply",
                }[layout]
                write(root / place, points, labels)


@pytest.mark.parametrize("layout", ["splits", "categories", "one category", "one folder"])
def test_folders(tmp_path, rng, layout):
    root = tmp_path / "objects"
    make_folder(root, rng, layout)
    splits = load_dataset(root, parts=True, num_points=6, test_fraction=1 / 3, progress=False)
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 4, "test": 2}
    for dataset in splits.values():
        if layout in ("splits", "categories"):
            assert (dataset.class_names, dataset.class_parts) == (["lamp", "mug"], [[0, 1], [2, 3]])
            assert dataset.part_names == ["lamp 0", "lamp 1", "mug 0", "mug 1"]
        else:
            assert (dataset.class_names, dataset.class_parts) == (["objects"], [[0, 1, 2, 3]])
            assert dataset.part_names == ["part 0", "part 1", "part 2", "part 3"]
        for item in dataset:
            assert item["part_labels"].shape == (6,)
            assert set(item["part_labels"].tolist()) <= set(dataset.class_parts[item["labels"]])


def test_names_of_parts(tmp_path, rng):
    make_folder(tmp_path, rng, "one folder")
    (tmp_path / "parts.txt").write_text("foot\nshade\nbody\nhandle\nlid\n")
    train = load_dataset(tmp_path, "part_folder", progress=False)["train"]
    assert train.part_names == ["foot", "shade", "body", "handle", "lid"]
    assert train.num_parts == 5
    (tmp_path / "parts.txt").write_text("foot\nshade\n")
    with pytest.raises(PointCloudError, match=r"parts.txt: has 2 names, but the labels go up to 3"):
        load_dataset(tmp_path, "part_folder", progress=False)
    (tmp_path / "parts.txt").write_text("foot\nshade\nfoot\nhandle\n")
    with pytest.raises(PointCloudError, match=r"parts.txt: 'foot' is the name of part 0 and of part 2"):
        load_dataset(tmp_path, "part_folder", progress=False)


def test_text_files_beside_folders(tmp_path, rng):
    """Clouds and folders of more clouds are one category, but notes and names of parts are no clouds."""
    for place in ("a.txt", "b.txt", "more/c.txt", "more/d.txt", "more/e.txt"):
        write(tmp_path / "data" / "mugs" / place, rng.normal(size=(10, 3)), np.arange(10) % 2)
    splits = load_dataset(tmp_path / "data", "part_folder", progress=False)
    assert splits["train"].class_names == ["mugs"]
    assert sum(map(len, splits.values())) == 5
    make_folder(tmp_path / "archive" / "objects", rng, "categories")
    for name in ("parts.txt", "readme.txt"):
        (tmp_path / "archive" / "objects" / name).write_text("foot\nshade\nbody\nhandle\n")
    train = load_dataset(tmp_path / "archive", "part_folder", progress=False)["train"]
    assert train.class_names == ["lamp", "mug"]
    assert train.part_names == ["foot", "shade", "body", "handle"]


def test_names_of_parts_above_the_folder_of_the_categories(tmp_path, rng):
    make_folder(tmp_path / "objects", rng, "categories")
    (tmp_path / "parts.txt").write_text("foot\nshade\nbody\nhandle\n")
    train = load_dataset(tmp_path, "part_folder", progress=False)["train"]
    assert train.part_names == ["foot", "shade", "body", "handle"]


def test_labels_that_were_corrected_are_read_again(tmp_path, rng):
    """They are in a file of their own, so the clouds in the cache are as old as their files."""
    for index in range(4):
        write(tmp_path / "objects" / f"beside.{index}.xyz", rng.normal(size=(10, 3)), np.zeros(10))

    def parts():
        splits = load_dataset(tmp_path / "objects", parts=True, progress=False, cache_dir=tmp_path / "cache")
        return splits["train"].class_parts

    before = parts()
    for file in (tmp_path / "objects").rglob("*.seg"):
        np.savetxt(file, np.full(10, 7), "%d")
    assert (before, parts()) == ([[0]], [[7]])


def test_wrong_folders(tmp_path, rng):
    write(tmp_path / "lamp" / "plain.txt", rng.normal(size=(10, 3)), np.full(10, -1))
    with pytest.raises(PointCloudError, match="no point of the category 'lamp' has a label of 0 or above"):
        load_dataset(tmp_path, parts=True, progress=False)
    with pytest.raises(ValueError, match="layout 'folder' has no label for each point"):
        load_dataset(tmp_path, "folder", parts=True)
    # A folder of clouds is not taken for one of labelled clouds.
    write(tmp_path / "mug" / "plain.txt", rng.normal(size=(10, 3)), np.zeros(10))
    write(tmp_path / "mug" / "other.txt", rng.normal(size=(10, 3)), np.zeros(10))
    assert load_dataset(tmp_path, progress=False)["train"].class_parts is None


def test_default_names_of_shared_parts():
    from point_peft_hf.data import PointCloudDataset

    clouds = np.zeros((2, 5, 3), np.float32)
    parts = [[0, 1], [1, 3]]
    dataset = PointCloudDataset(clouds, [0, 1], ["mug", "lamp"], part_labels=np.zeros((2, 5)), class_parts=parts)
    assert dataset.part_names == ["mug 0", "part 1", "part 2", "lamp 1"]

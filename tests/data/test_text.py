import numpy as np
import pytest
import trimesh

from point_peft_hf.data import PointCloudError, read_point_cloud
from point_peft_hf.data.formats.off import read_off
from point_peft_hf.data.formats.text import read_table

EXPECTED = np.array([[1, 2, 3], [4, 5, 6.5]], dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.xyz", "1 2 3\n4 5 6.5\n"),
        ("a.xyz", "1 2 3\n4 5 6.5"),
        ("a.xyz", "\n  1\t2   3\n\n4 5 6.5\n\n"),
        ("a.txt", "1,2,3,0,0,1\n4,5,6.5,0,0,1\n"),
        ("a.txt", "1, 2, 3,\n4, 5, 6.5,\n"),
        ("a.csv", "x,y,z\n1,2,3\n4,5,6.5\n"),
        ("a.csv", "\ufeffx,y,z\r\n1,2,3\r\n4,5,6.5\r\n"),
        ("a.csv", '"label";"z";"x";"y"\nchair;3;1;2\nchair;6.5;4;5\n'),
        ("a.csv", "id,X [m],Y [m],Z [m]\n7,1,2,3\n8,4,5,6.5\n"),
        ("a.txt", "id X [m] Y(m) Z (m) Intensity\n7 1 2 3 0\n8 4 5 6.5 0\n"),
        ("a.csv", '"Normals:0","Points:0","Points:1","Points:2"\n0,1,2,3\n0,4,5,6.5\n'),
        ("a.csv", "id;Northing;Easting;Height\n7;2;1;3\n8;5;4;6.5\n"),
        ("a.csv", "EASTING,NORTHING,HEIGHT (dm),ELEVATION,Z\n1,2,3,0,0\n4,5,6.5,0,0\n"),
        ("a.csv", "id,x,y,elevation\n7,1,2,3\n8,4,5,6.5\n"),
        ("a.csv", "//id,x,y,z\n7,1,2,3\n8,4,5,6.5\n"),
        ("a.txt", "# made by hand\n# id x [mm] y [mm] z [mm]\n\n7 1 2 3\n8 4 5 6.5\n"),
        ("a.txt", "# name of\n1 2 3 0\n4 5 6.5 0\n"),
        ("a.asc", "//Scalar,X,Y,Z\n2\n7,1,2,3\n8,4,5,6.5\n"),
        ("a.csv", "x,y,z,\n1,2,3,\n4,5,6.5,\n"),
        ("a.csv", "(x),(y),(z)\n1,2,3\n4,5,6.5\n"),
        ("a.asc", "//X Y Z R G B\n1 2 3 255 0 0\n4 5 6.5 255 0 0\n"),
        ("a.asc", "# a comment\n1 2 3 # another\n// and another\n4 5 6.5 // one more\n"),
        ("a.pts", "2\n1 2 3 9 9 9 9\n4 5 6.5 9 9 9 9\n"),
        ("a.xyz", "1e0 2E0 .3e1\n4 5 +6.5\n"),
    ],
)
def test_rows(write, name, text):
    np.testing.assert_array_equal(read_point_cloud(write(name, text)), EXPECTED)


def test_other_columns_follow(write):
    table = read_table(write("a.txt", "z y x part\n3 2 1 7\n6 5 4 8\n"))
    np.testing.assert_array_equal(table, [[1, 2, 3, 7], [4, 5, 6, 8]])


def test_latin_1_comment(write):
    path = write("a.xyz", "# Möbel\n1 2 3\n4 5 6.5\n".encode("latin-1"))
    np.testing.assert_array_equal(read_point_cloud(path), EXPECTED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n\n", "only comments and blank lines"),
        ("x y z\n", "holds a header, 'x y z', and no row of numbers"),
        ("id,lon,lat,h\n1,2,3,4\n", r"cannot tell which columns .* name them x, y and z .* \['id', 'lon', 'lat', 'h"),
        ("1 2\n3 4\n", r"line 1: a point needs 3 numbers \(x y z\), got 2 columns"),
        ("1 2 3\n# comment\n4 five 6\n", "line 3: expected a number in column 2, got 'five'"),
        ("1 2 3\n\n4 5\n", "line 3: needs at least 3 columns, has 2"),
        ("hello world\nthis is text\n", "its header has 2 names, .*'hello', 'world'.*, and its first row 3 columns"),
        ("5\n1 2 3\n4 5 6\n", "its first line promises 5 points, 2 follow"),
        ("1 2 3\n4 5 nan\n", r"1 of 2 points have NaN .* the first is number 1"),
        ("1 2 3\n4 5 inf\n", "NaN or infinite"),
        ("1 2 3\n", "holds 1 point; a cloud has at least 2"),
        (b"\0\1\2\3\n", "is binary"),
    ],
)
def test_broken(write, text, message):
    path = write("broken.xyz", text)
    with pytest.raises(PointCloudError, match=message) as error:
        read_point_cloud(path)
    assert str(path) in str(error.value)


def test_a_late_error_names_its_line(write):
    lines = ["0 0 0"] * 20000
    lines[15000] = "0 0 oops"
    with pytest.raises(PointCloudError, match="line 15001: expected a number in column 3, got 'oops'"):
        read_point_cloud(write("a.xyz", "\n".join(lines)))


CUBE = trimesh.creation.box()


def test_off_of_trimesh(tmp_path):
    CUBE.export(tmp_path / "a.off")
    vertices, faces = read_off(tmp_path / "a.off")
    np.testing.assert_allclose(vertices, CUBE.vertices)
    np.testing.assert_array_equal(faces, CUBE.faces)


@pytest.mark.parametrize(
    "head", ["OFF\n4 2 0\n", "OFF4 2 0\n", "OFF 4 2 0\n", "4 2 0\n", "# note\nOFF # note\n\n4 2\n", "COFF\n4 2 0\n"]
)
def test_off_headers(write, head):
    extra = " 255 0 0" if head.startswith("COFF") else ""
    body = "".join(f"{x} {y} 0{extra}\n" for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))) + "3 0 1 2\n4 0 1 2 3 0.5 0.5\n"
    vertices, faces = read_off(write("a.off", head + body))
    np.testing.assert_array_equal(vertices, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    np.testing.assert_array_equal(faces, [[0, 1, 2], [0, 1, 2], [0, 2, 3]])


def test_off_without_faces_is_a_cloud(write):
    np.testing.assert_array_equal(read_point_cloud(write("a.off", "OFF\n2 0 0\n1 2 3\n4 5 6.5\n")), EXPECTED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OFF\n3 1 0\n", "promises 3 vertices and 1 faces, 0 lines follow"),
        ("OFF\n", "expected the numbers of vertices"),
        ("OFF BINARY\n", "binary .off is not read"),
        ("OFFICE\n", "starts with 'OFF'"),
        ("OFF\n0 0 0\n", "0 vertices"),
        ("OFF\n3 1 0\n0 0 0\n1 x 0\n0 1 0\n3 0 1 2\n", "line 4: expected a number in column 2, got 'x'"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n4 0 1\n", "expected a face"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "a face names vertex 3, and the file has 3 vertices"),
        (
            "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n4 0 1 2 3\n",
            "broken.off: a face names vertex 3, and the file has 3 vertices",
        ),
        ("OFF\n3 1 0\n0 0 0\n0 0 0\n0 1 0\n3 0 1 2\n", "no area"),
        ("# nothing\n", "nothing but comments"),
    ],
)
def test_broken_off(write, text, message):
    path = write("broken.off", text)
    with pytest.raises(PointCloudError, match=message) as error:
        read_point_cloud(path)
    assert str(path) in str(error.value)

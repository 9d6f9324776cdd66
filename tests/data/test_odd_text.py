"""Text files as programs and people write them: the right points, or an error that names both readings."""

import numpy as np
import pytest

from point_peft_hf.data import PointCloudError, read_point_cloud
from point_peft_hf.data.part_files import read_labelled_cloud

POINTS = np.array([[1.5, 2.25, 3.125], [-4.5, 5.5, 6.75], [7.25, -8.5, 9.5], [0.5, 0.25, -1.5]])


def rows(*columns, sep=" ", line_end="\n"):
    return "".join(sep.join(f"{float(v):.10g}" for v in row) + line_end for row in np.column_stack(columns))


def comma(text):
    return text.replace(".", ",")


INDEX, LABELS = np.arange(4), np.arange(4) % 2
READ = {
    "names with blanks": "GPS Time\tX\tY\tZ\tIntensity\n" + rows(INDEX + 100.5, POINTS, INDEX, sep="\t"),
    "names with blanks, colours": "Point ID\tX\tY\tZ\tR\tG\tB\n" + rows(INDEX, POINTS, POINTS, sep="\t"),
    "names with blanks and units": "Point ID\tX [m]\tY [m]\tZ [m]\n" + rows(INDEX, POINTS, sep="\t"),
    "names with commas above blanks": "id,x,y,z\n" + rows(INDEX, POINTS),
    "names in bars": "id|x|y|z\n" + rows(INDEX, POINTS, sep="|"),
    "names with prefixes": "t,pos_x,pos_y,pos_z\n" + rows(INDEX, POINTS, sep=","),
    "names with suffixes": "t,x_coord,y_coord,z_coord\n" + rows(INDEX, POINTS, sep=","),
    "names of a message": "t,point.x,point.y,point.z\n" + rows(INDEX, POINTS, sep=","),
    "names in brackets": "(x),(y),(z)\n" + rows(POINTS, sep=","),
    "normals before coordinates": "nx ny nz x y z\n" + rows(POINTS[::-1], POINTS),
    "normals before, commented": "# nx ny nz x y z\n" + rows(POINTS[::-1], POINTS),
    "names in a comment, with units": "# TIMESTAMP (ns), RANGE (mm), X1 (mm), Y1 (mm), Z1 (mm)\n"
    + rows(INDEX, INDEX, POINTS, sep=", "),
    "names in a comment above another": "# z y x\n# made by hand\n" + rows(POINTS[:, ::-1]),
    "names after a colon": "# columns: z y x\n" + rows(POINTS[:, ::-1]),
    "a sentence in a comment": "# made by hand\n" + rows(POINTS),
    "a sentence with x, y, z": "# x y z of a chair\n" + rows(POINTS),
    "fewer names than columns in a comment": "# x y z\n" + rows(POINTS, POINTS),
    "names of pandas": "0,1,2\n" + rows(POINTS, sep=","),
    "names of pandas, six": "0,1,2,3,4,5\n" + rows(POINTS, POINTS, sep=","),
    "names of pandas, semicolons": "0;1;2\n" + rows(POINTS, sep=";"),
    "names and index of pandas": ",0,1,2\n" + rows(INDEX, POINTS, sep=","),
    "names of pandas, quoted": '"0","1","2"\n' + rows(POINTS, sep=","),
    "form feed": "# page 1\x0c\n" + rows(POINTS),
    "vertical tab": "# a\x0bb\n" + rows(POINTS),
    "line separator of unicode": "# a\u2028b\n" + rows(POINTS),
    "next line of latin-1": ("# a\x85b\n" + rows(POINTS)).encode("latin-1"),
    "old Macintosh": "x y z\r" + rows(POINTS, line_end="\r"),
    "UTF-16": ("x y z\n" + rows(POINTS)).encode("utf-16"),
    "UTF-16, big endian": b"\xfe\xff" + rows(POINTS).encode("utf-16-be"),
    "UTF-16 without a mark": rows(POINTS, line_end="\r\n").encode("utf-16-le"),
    "UTF-8 with a mark": ("\ufeff" + rows(POINTS)).encode(),
    "decimal commas and tabs": comma(rows(POINTS, sep="\t")),
    "decimal commas and blanks": comma(rows(POINTS)),
    "decimal commas and semicolons": comma("x;y;z\n" + rows(POINTS, sep=";")),
    "decimal commas in quotes": '"x","y","z"\n' + "".join(f'"{comma(str(a))}","{comma(str(b))}","{comma(str(c))}"\n'
                                                       for a, b, c in POINTS),
    "decimal commas from the second row on": "1\t2\t3\n" + comma(rows(POINTS[1:], sep="\t")),
    "a line for Excel": "sep=;\nx;y;z\n" + rows(POINTS, sep=";"),
    "a line for Excel, quoted": '"sep=,"\r\nx,y,z\r\n' + rows(POINTS, sep=",", line_end="\r\n"),
    "a line for Excel, decimal commas": comma("SEP=;\n" + rows(POINTS, sep=";")),
    "quoted numbers": "".join(f'"{a}","{b}","{c}"\n' for a, b, c in POINTS),
    "quoted numbers, blanks": "".join(f'"{a}" "{b}" "{c}"\n' for a, b, c in POINTS),
    "single quotes": "x;y;z\n" + "".join(f"'{a}';'{b}';'{c}'\n" for a, b, c in POINTS),
    "a name with a delimiter": "name,x,y,z\n" + "".join(f'"chair, old",{a},{b},{c}\n' for a, b, c in POINTS),
    "blocks of Leica": "3\n" + rows(POINTS[:3], INDEX[:3]) + "1\n" + rows(POINTS[3:], INDEX[3:]),
    "a count and names": "4\nx y z\n" + rows(POINTS),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_read(write, name):
    content = READ[name]
    expected = POINTS
    if "second row" in name:
        expected = np.vstack([[1, 2, 3], POINTS[1:]])
    np.testing.assert_allclose(read_point_cloud(write("a.csv", content)), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X,Y,X\n" + rows(POINTS, sep=","), "cannot tell which columns .* which has .'x', 'y', 'x'"),
        ("x y z x y z\n" + rows(POINTS, POINTS), "cannot tell which columns"),
        ("x1,y1,z1,x2,y2,z2\n" + rows(POINTS, POINTS, sep=","), "cannot tell which columns"),
        ("nx ny nz\n" + rows(POINTS), "cannot tell which columns"),
        ("a,b,c\n" + rows(POINTS, sep=","), "cannot tell which columns"),
        ("Latitude,Longitude,Elevation\n69.3,-49.8,630\n69.4,-49.9,631\n", "degrees have to be projected"),
        ("# lat lon height\n69.3 -49.8 630\n69.4 -49.9 631\n", "degrees have to be projected"),
        ("# a, b, c\n" + rows(POINTS, sep=","), "cannot tell which columns"),
        ("# id x y z\n" + rows(POINTS), "names 4 columns, and the first row has 3"),
        ("GPS Time X Y Z\n" + rows(INDEX, POINTS), "header has 5 names, .*, and its first row 4 columns"),
        ("x y z\n" + rows(INDEX, POINTS), "header has 3 names, .*, and its first row 4 columns"),
        ("0 1 2\n" + rows(POINTS), "can be the names of columns, as pandas writes them, or a point"),
        ("0,1,2\n3,4,5\n6,7,8\n", "can be the names of columns, as pandas writes them, or a point"),
        ("1,2,3,4\n" + rows(POINTS, INDEX + 0.5, sep=","), "can be the names of columns, .* 1.0 and so on"),
        ("1,234\t5,678\t9,012\n2,345\t6,789\t1,234\n", "whether 1,234 is 1234 or 1.234"),
        ("1,234.5\t5,678.5\t9,012.5\n2,345.5\t6,789.5\t1,234.5\n", "expected a number"),
        ("1.5 2.25 3.125\n1 2 3 4\n", "line 2: has 4 columns, and the first row 3"),
        ("1,2,3\n1,5,2,5,3,5\n", "line 2: has 6 columns, and the first row 3"),
        ("3\n1 2 3\n4 5 6\n7 8 9\n2\n1 2 3\n", "promises 2 points, 1 follow"),
        ("2\n1 2 3\n4 5 6\n7 8 9\n", "promises 2 points, 3 follow"),
        ("1 2 3\n1_0 2 3\n", "expected a number in column 1, got '1_0'"),
        (rows(*np.random.default_rng(0).normal(size=(3, 40)).T), "looks transposed"),
    ],
)
def test_refused(write, text, message):
    with pytest.raises(PointCloudError, match=f"a.csv: .*{message}|{message}"):
        read_point_cloud(write("a.csv", text))


@pytest.mark.parametrize("nan", ["nan", "-nan(ind)", "1.#QNAN", "-1.#IND", "NaN", "NULL", "NA", "1.#INF", ""])
def test_what_is_no_number(write, nan):
    path = write("a.csv", "x,y,z\n" + rows(POINTS[:2], sep=",") + f"1,{nan},{nan}\n" + rows(POINTS[2:], sep=","))
    with pytest.raises(PointCloudError, match="1 of 5 points have NaN .* number 2 .*drop_invalid"):
        read_point_cloud(path)
    np.testing.assert_allclose(read_point_cloud(path, drop_invalid=True), POINTS)


def test_whole_numbers_that_count_are_points(write):
    for text in ("0 1 2\n3 4 5\n", "1,2,3\n4,5,6\n", "1 2 3\n4.5 5.5 6.5\n", "0.0,1.0,2.0\n0.5,1.5,2.5\n"):
        assert len(read_point_cloud(write("a.txt", text))) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Scan ID\tX\tY\tZ\tlabel\tR\n" + rows(INDEX, POINTS, LABELS, INDEX, sep="\t"),
        "//X Y Z Label Nx Ny Nz\n" + rows(POINTS, LABELS, POINTS),
        "//X Y Z scalar_Classification\n" + rows(POINTS, LABELS),
        "x y z intensity class\n" + rows(POINTS, INDEX, LABELS),
        "Semantic;X;Y;Z\n" + rows(LABELS, POINTS, sep=";"),
        rows(POINTS, LABELS),
        rows(POINTS, POINTS, LABELS),
    ],
)
def test_labels(write, text):
    read = read_labelled_cloud(write("a.txt", text))
    np.testing.assert_allclose(read[:, :3], POINTS)
    assert read[:, 3].tolist() == LABELS.tolist()


MANY = np.random.default_rng(0).normal(size=(400, 3))
BYTES = np.random.default_rng(1).integers(0, 255, (400, 4))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", rows(MANY, BYTES[:, 0]), "column 4, which has no name and .* is the label or an intensity"),
        ("a.csv", rows(MANY, BYTES[:, 0], sep=","), "column 4, which has no name"),
        ("a.xyz", rows(MANY[:30], BYTES[:30, 0]), "column 4, which has no name"),
        ("a.txt", rows(MANY, BYTES), "column 7, which has no name"),
        ("a.txt", rows(MANY, BYTES[:, :3], BYTES[:, 0] % 2), "x y z red green blue label or x y z intensity red"),
        ("a.pts", f"{len(MANY)}\n" + rows(MANY, BYTES), "columns of a .pts file .* intensity and colours"),
        ("a.pts", f"{len(MANY)}\n" + rows(MANY, BYTES[:, 0] % 2), "columns of a .pts file .* intensity and colours"),
        ("a.txt", "//X Y Z Intensity\n" + rows(MANY, BYTES[:, 0] % 2), "no column is named as labels are"),
        ("a.txt", "x y z class label\n" + rows(MANY, BYTES[:, :2] % 2), "column holds the labels, class or label"),
        ("a.txt", rows(MANY, np.full(400, 2.0**25)), "label 33554432 is too large"),
        ("a.txt", "x y z label\n" + rows(MANY, np.full(400, 2.0**25)), "label 33554432 is too large"),
    ],
)  # fmt: skip
def test_columns_that_may_be_something_else_are_no_labels(write, name, content, message):
    with pytest.raises(PointCloudError, match=message):
        read_labelled_cloud(write(name, content))
    assert len(read_point_cloud(write(name, content))) in (400, 30)

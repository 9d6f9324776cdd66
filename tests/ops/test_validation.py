import pytest
import torch

from point_peft_hf.ops import validate_points


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_good_clouds_pass(dtype):
    validate_points(torch.randn(2, 8, 3, dtype=dtype), minimum=8)
    validate_points(torch.randn(1, 1, 3, dtype=dtype, requires_grad=True))


def test_finite_points_whose_sum_overflows_pass():
    validate_points(torch.full((1, 10, 3), 3e38))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[[0.0, 0.0, 0.0]]], r"must be a torch.Tensor of shape \(B, N, 3\), got list; .*torch.as_tensor"),
        (None, "got NoneType"),
        (torch.zeros(1, 4, 3, dtype=torch.int64), r"floating-point dtype, got torch.int64; convert it: points.float"),
        (torch.zeros(1, 4, 3, dtype=torch.bool), "got torch.bool"),
        (torch.zeros(4, 3), r"got 2 dimension\(s\): \(4, 3\).* add a batch dimension: points\[None\]"),
        (torch.zeros(4, 6), r"add a batch dimension: points\[None\]"),
        (torch.zeros(3), r"got 1 dimension\(s\): \(3,\)"),
        (torch.zeros(2, 2, 4, 3), r"got 4 dimension\(s\).*points.flatten\(0, 1\)"),
        (torch.zeros(2, 8, 6), r"last dimension of 6: \(2, 8, 6\).*take points\[..., :3\]"),
        (torch.zeros(2, 3, 2), r"points.transpose\(1, 2\)"),
        (torch.zeros(2, 8, 2), r"last dimension of 2: \(2, 8, 2\)"),
        (torch.zeros(0, 8, 3), r"empty batch, shape \(0, 8, 3\); give at least one cloud"),
        (torch.zeros(2, 0, 3), r"clouds without points, shape \(2, 0, 3\); remove"),
    ],
)
def test_messages(points, message):
    with pytest.raises(ValueError, match=message):
        validate_points(points)


def test_channels_first_is_named():
    # A last dimension above 3 may be more columns as well; the axis of length 3 decides.
    with pytest.raises(ValueError, match=r"points.transpose\(1, 2\)"):
        validate_points(torch.zeros(2, 3, 1024))


def test_too_few_points():
    with pytest.raises(
        ValueError, match=r"4 points a cloud, but at least 32 are needed \(group_size=32\); give denser"
    ):
        validate_points(torch.zeros(1, 4, 3), minimum=32, reason="group_size=32")
    with pytest.raises(ValueError, match="at least 5 are needed; "):
        validate_points(torch.zeros(1, 4, 3), minimum=5)


def test_name_is_used():
    with pytest.raises(ValueError, match=r"^clouds must have shape .*clouds\[None\]"):
        validate_points(torch.zeros(4, 3), name="clouds")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(value):
    points = torch.zeros(3, 8, 3)
    points[1, 2:4, 0] = value
    points[1, 2, 1] = value  # the same point again counts once
    points[2, 7] = value
    with pytest.raises(ValueError, match="coordinates: 2 of 8 points of cloud 1, 1 of 8 points of cloud 2; remove"):
        validate_points(points)


def test_opposite_infinities_and_many_bad_clouds():
    points = torch.zeros(9, 2, 3)
    points[:, 0, 0], points[:, 1, 0] = float("inf"), float("-inf")
    with pytest.raises(ValueError, match="2 of 2 points of cloud 4 and 4 more clouds; remove"):
        validate_points(points)


def test_traces_without_graph_break():
    def forward(points):
        validate_points(points, minimum=4)
        return points * 2

    compiled = torch.compile(forward, fullgraph=True, backend="eager")
    points = torch.randn(2, 8, 3)
    assert torch.equal(compiled(points), points * 2)
    points[0, 0, 0] = float("nan")
    assert bool(compiled(points).isnan().any())  # the values are not looked at


def test_only_value_errors():
    for wrong in (0, "points", object(), torch.zeros(()), torch.zeros(1, 1, 1, 1, 1)):
        with pytest.raises(ValueError, match="points must"):
            validate_points(wrong)

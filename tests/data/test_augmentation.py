import pytest
import torch

from point_peft_hf.data import AUGMENTATIONS, get_augmentation
from point_peft_hf.data.augmentation import (
    jitter,
    point_dropout,
    random_rotate,
    random_scale,
    random_translate,
    scan_corruption,
)


@pytest.fixture
def points():
    points = torch.randn(64, 128, 3, generator=torch.Generator().manual_seed(0))
    return points / points.norm(dim=2, keepdim=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_presets(points, name):
    before = points.clone()
    augment = get_augmentation(name)
    first = augment(points, generator=seeded())
    assert first.shape == points.shape
    assert first.dtype == points.dtype
    assert torch.isfinite(first).all()
    assert torch.equal(points, before)
    assert torch.equal(first, augment(points, generator=seeded()))
    assert torch.equal(first, augment(points, seeded()))
    assert (name == "none") == torch.equal(first, augment(points, generator=seeded(1)))
    torch.manual_seed(0)
    again = augment(points)
    torch.manual_seed(0)
    assert torch.equal(again, augment(points))
    assert augment(points.double(), generator=seeded()).dtype == torch.float64
    assert augment(points.half()).dtype == torch.float16
    assert augment(points[:1, :2]).shape == (1, 2, 3)


def test_unknown_preset():
    with pytest.raises(ValueError, match="unknown augmentation 'spin'; there are none, scale_translate, rotate"):
        get_augmentation("spin")


@pytest.mark.parametrize("wrong", [torch.zeros(5, 3), torch.zeros(2, 5, 4), torch.zeros(2, 5, 3).int(), [[0, 0, 0]]])
def test_unusable_points(wrong):
    for augment in (*map(get_augmentation, AUGMENTATIONS), jitter, random_rotate):
        with pytest.raises(ValueError, match=r"points must be a float tensor of shape \(batch_size, num_points, 3\)"):
            augment(wrong)


def test_scale_and_translate_have_the_ranges_of_the_papers(points):
    factors = random_scale(points, generator=seeded()) / points
    assert torch.allclose(factors, factors[:, :1], rtol=1e-4)  # one factor a cloud and axis
    factors = factors[:, 0]
    assert 2 / 3 <= factors.min() < 0.72
    assert 1.45 < factors.max() <= 1.5 + 1e-5
    assert (factors.std(dim=1) > 1e-3).all()
    same = random_scale(points, per_axis=False, generator=seeded()) / points
    torch.testing.assert_close(same, same[:, :1, :1].expand_as(same), rtol=1e-4, atol=1e-4)
    moves = random_translate(points, generator=seeded()) - points
    torch.testing.assert_close(moves, moves[:, :1].expand_as(moves), rtol=1e-4, atol=1e-6)
    assert 0.19 < moves.abs().max() <= 0.2 + 1e-6


@pytest.mark.parametrize(("axis", "fixed"), [("x", 0), ("y", 1), ("z", 2), ("any", None)])
def test_rotations_keep_distances_and_hands(points, axis, fixed):
    frame = torch.eye(3).expand(64, 3, 3)
    turned = random_rotate(frame, axis=axis, generator=seeded())
    torch.testing.assert_close(turned @ turned.transpose(1, 2), frame, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turned), torch.ones(64))
    if fixed is not None:
        torch.testing.assert_close(turned[:, fixed], frame[:, fixed])
    else:
        assert turned.mean(dim=0).abs().max() < 0.25  # no direction is preferred
    with pytest.raises(ValueError, match="axis must be x, y, z or any, got 'w'"):
        random_rotate(points, axis="w")


def test_rotation_by_a_known_angle():
    # Where the only angle is that of the draw: tan of the turned x axis.
    turned = random_rotate(torch.eye(3).expand(500, 3, 3), max_angle=0.3, generator=seeded())
    angle = torch.atan2(-turned[:, 0, 2], turned[:, 0, 0])
    assert 0.28 < angle.max() <= 0.3
    assert -0.3 <= angle.min() < -0.28


def test_jitter_is_clipped(points):
    noise = jitter(points, std=0.05, clip=0.05, generator=seeded()) - points
    assert noise.abs().max() <= 0.05 + 1e-6
    assert noise.std() > 0.03


def test_dropout_repeats_the_first_point(points):
    dropped = point_dropout(points, generator=seeded())
    same = (dropped == points).all(dim=2)
    first = (dropped == points[:, :1]).all(dim=2)
    assert (same | first).all()
    share = 1 - same.float().mean(dim=1)
    assert share.min() < 0.1
    assert 0.7 < share.max() < 0.95
    with pytest.raises(ValueError, match="max_ratio"):
        point_dropout(points, max_ratio=1.0)


def test_scan_is_seen_from_one_side(points):
    scanned = scan_corruption(points, visible_ratio=0.5, max_hole_ratio=0.0, std=0.0, generator=seeded())
    number = torch.tensor([len(cloud.unique(dim=0)) for cloud in scanned])
    assert 64 <= number.min() < 75
    assert number.max() <= 128
    # Points on a sphere seen from one side: their mean moves to the viewer, and none is new.
    half = scanned[number.argmin()]
    assert half.mean(dim=0).norm() > 0.3
    assert half.mean(dim=0)[1] >= -0.05  # never from under the floor
    assert torch.isin(half, points[number.argmin()]).all()
    holes = scan_corruption(points, visible_ratio=1.0, max_hole_ratio=0.5, std=0.0, generator=seeded())
    lost = torch.tensor([128 - len(cloud.unique(dim=0)) for cloud in holes])
    assert lost.max() > 40
    noisy = scan_corruption(points, visible_ratio=1.0, max_hole_ratio=0.0, std=0.02, generator=seeded())
    difference = noisy - points
    assert 0.015 < difference.norm(dim=2).square().mean().sqrt() < 0.025
    assert torch.linalg.matrix_rank(difference[0], atol=1e-4) == 1  # along one line of sight
    with pytest.raises(ValueError, match="max_hole_ratio < visible_ratio"):
        scan_corruption(points, visible_ratio=0.2, max_hole_ratio=0.3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu(points):
    for name in AUGMENTATIONS:
        augment = get_augmentation(name)
        expected = augment(points, generator=seeded())
        found = augment(points.cuda(), generator=seeded())  # a generator on the CPU gives the same on either
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
        generator = torch.Generator("cuda").manual_seed(0)
        assert augment(points.cuda(), generator=generator).is_cuda


def test_repr_shows_the_numbers():
    assert repr(get_augmentation("scale_translate")) == (
        "Compose(random_scale(low=0.6667, high=1.5, per_axis=True), random_translate(distance=0.2))"
    )


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_labels_follow_their_points(points, name):
    """Labels that say where a point is: they still do, whatever became of the points' order."""
    labels = torch.arange(points.shape[1]).expand(len(points), -1)
    augment = get_augmentation(name)
    plain = augment(points, generator=seeded())
    augmented, followed = augment(points, generator=seeded(), part_labels=labels)
    assert torch.equal(augmented, plain)
    assert followed.shape == labels.shape
    if name in ("dropout_scale_translate", "scan"):
        # Where a point was repeated, so was its label, and nowhere else.
        repeated = (augmented[:, :, None] == augmented[:, None]).all(dim=-1)
        assert torch.equal(repeated, followed[:, :, None] == followed[:, None])
        assert not torch.equal(followed, labels)
    else:
        assert torch.equal(followed, labels)


@pytest.mark.parametrize("augmentation", [point_dropout, scan_corruption])
def test_indices_of_the_points_that_stay(points, augmentation):
    options = {} if augmentation is point_dropout else {"std": 0.0}
    augmented, indices = augmentation(points, generator=seeded(), return_indices=True, **options)
    assert torch.equal(augmented, points.gather(1, indices[..., None].expand_as(points)))

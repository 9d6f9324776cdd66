import numpy as np
import pytest

from point_peft_hf.data.corruptions import CORRUPTIONS, STRENGTHS, corrupt


@pytest.fixture(scope="module")
def sphere():
    points = np.random.default_rng(0).normal(size=(1000, 3))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def distances_to(points, others):
    return np.linalg.norm(points[:, None] - others[None], axis=-1).min(axis=1)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_generator_gives_the_same_cloud(sphere, name, strength):
    first, again = (corrupt(sphere, name, strength, np.random.default_rng(3)) for _ in range(2))
    assert first.dtype == np.float32
    assert first.shape[1] == 3
    assert 1 <= len(first) <= len(sphere)
    assert np.isfinite(first).all()
    assert np.array_equal(first, again)


def test_strengths(sphere):
    rng = np.random.default_rng(0)
    # Three independent components: the mean distance moved is sqrt(8 / pi) standard deviations.
    moved = np.linalg.norm(corrupt(sphere, "noise", 5, rng) - sphere, axis=1)
    assert moved.mean() == pytest.approx(0.03 * np.sqrt(8 / np.pi), rel=0.08)
    assert (corrupt(sphere, "outliers", 3, rng) != sphere).any(axis=1).sum() == 60
    assert len(corrupt(sphere, "dropout", 5, rng)) == 250
    assert len(corrupt(sphere, "density", 1, rng)) == 1000 - 75
    seen = [len(corrupt(sphere, "occlusion", strength, np.random.default_rng(1))) for strength in STRENGTHS]
    assert seen == sorted(seen, reverse=True)
    assert 400 < seen[-1] < 700  # about half of a sphere is seen


@pytest.mark.parametrize("name", ["dropout", "occlusion", "density"])
def test_these_only_remove(sphere, name):
    assert distances_to(corrupt(sphere, name, 4, np.random.default_rng(0)), sphere).max() == 0


def test_rotation_turns_by_its_angle_and_nothing_else(sphere):
    turned = corrupt(sphere, "rotation", 5, np.random.default_rng(0)).astype(np.float64)
    rotation, *_ = np.linalg.lstsq(sphere.astype(np.float64), turned, rcond=None)
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    assert np.degrees(np.arccos((np.trace(rotation) - 1) / 2)) == pytest.approx(15, abs=1e-2)


def test_noise_goes_with_the_size_of_the_cloud(sphere):
    small = corrupt(0.001 * sphere, "noise", 3, np.random.default_rng(0))
    large = corrupt(sphere, "noise", 3, np.random.default_rng(0))
    assert np.allclose(1000 * small, large, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "strength", "message"),
    [("fog", 1, "no corruption 'fog'"), ("noise", 0, "got 0"), ("noise", 6, "got 6")],
)
def test_wrong_input(sphere, name, strength, message):
    with pytest.raises(ValueError, match=message):
        corrupt(sphere, name, strength, np.random.default_rng(0))

import numpy as np
import pytest
import torch

from point_peft_hf.ops import interpolate_features, inverse_distance_weights


def naive_weights(targets, sources, num_neighbors, power, eps):
    distance = (targets.unsqueeze(2) - sources.unsqueeze(1)).norm(dim=-1)
    weights = 1 / (distance**power + eps)
    if num_neighbors is not None:
        limit = distance.sort(dim=-1).values[..., num_neighbors - 1 : num_neighbors]
        weights = weights * (distance <= limit)
    return weights / weights.sum(dim=-1, keepdim=True)


def test_by_hand():
    # A target at 0 and sources at 1, 2 and 4 on the x axis: 1/d^2 = 1, 1/4, 1/16, which sum to 21/16.
    targets = torch.zeros(1, 1, 3, dtype=torch.float64)
    sources = torch.zeros(1, 3, 3, dtype=torch.float64)
    sources[0, :, 0] = torch.tensor([1.0, 2.0, 4.0])
    weights = inverse_distance_weights(targets, sources, eps=1e-30)
    torch.testing.assert_close(weights[0, 0], torch.tensor([16.0, 4.0, 1.0], dtype=torch.float64) / 21)
    # The two nearest: 1 and 1/4, which sum to 5/4. With power 1: 1, 1/2, 1/4, which sum to 7/4.
    weights = inverse_distance_weights(targets, sources, num_neighbors=2, eps=1e-30)
    torch.testing.assert_close(weights[0, 0], torch.tensor([0.8, 0.2, 0.0], dtype=torch.float64))
    weights = inverse_distance_weights(targets, sources, power=1.0, eps=1e-30)
    torch.testing.assert_close(weights[0, 0], torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64) / 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("num_neighbors", [None, 1, 3, 7])
def test_equals_naive(dtype, power, num_neighbors):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(2, 12, 3, generator=generator).to(dtype)
    sources = torch.randn(2, 7, 3, generator=generator).to(dtype)
    weights = inverse_distance_weights(targets, sources, num_neighbors=num_neighbors, power=power)
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = naive_weights(targets.double(), sources.double(), num_neighbors, power, 1e-8)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
    if num_neighbors is not None:
        assert bool(((weights > 0).sum(dim=-1) == num_neighbors).all())


def test_coinciding_point_takes_all_the_weight():
    sources = torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(inverse_distance_weights(sources, sources)[0], torch.eye(6), atol=1e-5, rtol=0)
    # Far from the origin as well: direct differences lose nothing there that the coordinates hold.
    torch.testing.assert_close(
        inverse_distance_weights(sources + 1000, sources + 1000)[0], torch.eye(6), atol=1e-5, rtol=0
    )


def test_equal_distances_share_equally():
    sources = torch.tensor([[[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]])
    assert inverse_distance_weights(torch.zeros(1, 1, 3), sources).tolist() == [[[0.25] * 4]]
    same = torch.ones(1, 5, 3)
    torch.testing.assert_close(inverse_distance_weights(same, same), torch.full((1, 5, 5), 0.2))


def test_permutation_of_the_sources_permutes_the_columns():
    generator = torch.Generator().manual_seed(2)
    targets, sources = (torch.randn(2, n, 3, generator=generator) for n in (5, 8))
    order = torch.randperm(8, generator=generator)
    for num_neighbors in (None, 3):
        torch.testing.assert_close(
            inverse_distance_weights(targets, sources[:, order], num_neighbors=num_neighbors),
            inverse_distance_weights(targets, sources, num_neighbors=num_neighbors)[..., order],
        )


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("num_neighbors", [None, 3])
def test_gradcheck(power, num_neighbors):
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(2, n, 3, dtype=torch.float64, generator=generator).requires_grad_() for n in (4, 5)]

    def weights(targets, sources):
        return inverse_distance_weights(targets, sources, num_neighbors=num_neighbors, power=power)

    assert torch.autograd.gradcheck(weights, inputs)


def test_gradcheck_at_coinciding_points():
    # Smooth at zero distance for power 2; a large eps keeps finite differences meaningful there.
    points = torch.randn(1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    inputs = [points.clone().requires_grad_(), points[:, [0, 0, 2]].clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda t, s: inverse_distance_weights(t, s, eps=0.1), inputs)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [1e-8, 1e-30])
def test_gradient_is_finite_at_coinciding_points(power, dtype, eps):
    generator = torch.Generator().manual_seed(5)
    targets = torch.randn(1, 4, 3, dtype=dtype, generator=generator).requires_grad_()
    sources = targets.detach()[:, [0, 0, 1]].clone().requires_grad_()
    weights = inverse_distance_weights(targets, sources, power=power, eps=eps)
    assert bool(weights.isfinite().all())
    (weights * torch.randn(weights.shape, dtype=dtype, generator=generator)).sum().backward()
    assert bool(targets.grad.isfinite().all())
    assert bool(sources.grad.isfinite().all())


def test_every_coordinate_gets_a_gradient():
    generator = torch.Generator().manual_seed(6)
    targets, sources = (torch.randn(2, n, 3, generator=generator).requires_grad_() for n in (6, 5))
    (inverse_distance_weights(targets, sources) * torch.randn(2, 6, 5, generator=generator)).sum().backward()
    assert bool((targets.grad != 0).all())
    assert bool((sources.grad != 0).all())


def test_wrong_arguments():
    targets, sources = torch.zeros(2, 4, 3), torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match="within 1 and the 5 sources, got 6"):
        inverse_distance_weights(targets, sources, num_neighbors=6)
    with pytest.raises(ValueError, match="differ in batch size: 1 and 2"):
        inverse_distance_weights(targets[:1], sources)
    with pytest.raises(ValueError, match=r"got \(4, 3\) and \(2, 5, 3\)"):
        inverse_distance_weights(targets[0], sources)
    for options in ({"power": 0.0}, {"eps": 0.0}, {"eps": -1.0}, {"power": float("nan")}):
        with pytest.raises(ValueError, match="must be above 0"):
            inverse_distance_weights(targets, sources, **options)


def test_reference(reference_dir):
    with np.load(reference_dir / "geometry_adapter_block.npz") as data:
        targets, sources, expected = (
            torch.from_numpy(data[key]) for key in ("center", "center2", "propagation_weights")
        )
    torch.testing.assert_close(inverse_distance_weights(targets, sources), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_neighbors", [1, 3, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interpolation_equals_the_product_with_the_weights(num_neighbors, dtype):
    generator = torch.Generator().manual_seed(7)
    targets, sources, features = (
        torch.randn(2, *s, dtype=dtype, generator=generator) for s in ((9, 3), (5, 3), (5, 4))
    )
    targets[0, 0] = sources[0, 2]
    features.requires_grad_()
    weights = inverse_distance_weights(targets, sources, num_neighbors=min(num_neighbors, 5))
    spread = interpolate_features(targets, sources, features, num_neighbors)
    torch.testing.assert_close(spread, weights @ features)
    grad = torch.randn(spread.shape, dtype=dtype, generator=generator)
    torch.testing.assert_close(
        torch.autograd.grad(spread, features, grad)[0], torch.autograd.grad(weights @ features, features, grad)[0]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_interpolation_of_half_precision_features(dtype):
    generator = torch.Generator().manual_seed(8)
    targets, sources, features = (torch.randn(1, *s, generator=generator) for s in ((9, 3), (5, 3), (5, 4)))
    spread = interpolate_features(targets, sources, features.to(dtype))
    assert spread.dtype == dtype
    torch.testing.assert_close(spread.float(), interpolate_features(targets, sources, features), rtol=0.03, atol=0.03)


def test_interpolation_of_wrong_features():
    targets, sources = torch.zeros(2, 4, 3), torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match=r"as in sources, \(2, 5\), got \(2, 4, 7\)"):
        interpolate_features(targets, sources, torch.zeros(2, 4, 7))
    with pytest.raises(ValueError, match="k must be within"):
        interpolate_features(targets, sources, torch.zeros(2, 5, 7), 0)

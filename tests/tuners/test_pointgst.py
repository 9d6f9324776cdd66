"""PointGST: its basis, its filter and its configuration, by hand."""

import math

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional as F

import point_peft_hf as pp
from point_peft_hf.ops import gather_points, morton_keys
from point_peft_hf.tuners.pointgst.basis import graph_basis, published_graph_basis
from point_peft_hf.tuners.pointgst.layer import SpectralFilter, Spectrum
from point_peft_hf.tuners.pointgst.published import read_published

CONFIG = {"bottleneck_size": 6, "local_size": 4, "init_weights": False}


@pytest.fixture
def centers():
    return torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0))


# -- Basis ------------------------------------------------------------------------------------------------------------


def test_basis_of_two_points_by_hand():
    # One distance, which is the smallest: all weights are 1, and the Laplacian is [[1, -1], [-1, 1]] / 2.
    basis = graph_basis(torch.tensor([[[0.0, 0, 0], [3.0, 4, 0]]]))
    expected = torch.tensor([[1.0, 1], [1, -1]]) / math.sqrt(2)
    torch.testing.assert_close(basis[0], expected)


def test_basis_diagonalizes_the_laplacian(centers):
    for cloud in centers.double():
        distances = torch.stack([(cloud - point).norm(dim=1) for point in cloud])
        smallest = distances[distances > 0].min()
        weights = torch.where(distances == 0, 1.0, smallest / distances)
        scale = weights.sum(dim=1).add(1e-6).rsqrt()
        laplacian = torch.eye(8) - scale[:, None] * weights * scale
        basis = graph_basis(cloud)
        rotated = basis.T @ laplacian @ basis
        torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), atol=1e-12, rtol=0)
        assert (rotated.diagonal().diff() > 0).all()


def test_basis_is_of_each_cloud_alone(centers):
    together = graph_basis(centers)
    assert torch.equal(torch.cat([graph_basis(cloud[None]) for cloud in centers]), together)
    published = published_graph_basis(centers)
    assert not torch.allclose(torch.cat([published_graph_basis(cloud[None]) for cloud in centers]), published)


def test_signs_are_decided(centers):
    basis = graph_basis(centers)
    leading = basis.abs().argmax(dim=1, keepdim=True)
    assert (basis.gather(1, leading) > 0).all()
    # Sizes that differ by rounding alone count as equal: the first entry decides.
    assert graph_basis(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))[0, 1] > 0


def test_equal_points(centers):
    centers[1, 3:] = centers[1, 2]
    basis = graph_basis(torch.cat([centers, torch.zeros(1, 8, 3)]))
    torch.testing.assert_close(basis @ basis.mT, torch.eye(8).expand(4, 8, 8), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="cannot take a cloud with equal centres.*`basis`=.cloud."):
        published_graph_basis(centers)


# -- Filter -----------------------------------------------------------------------------------------------------------


def by_hand(part, row_count, features, centers, transpose):
    """What is added to the tokens of one cloud, token by token and set by set."""
    inner = features @ part.down_weight.T + part.down_bias
    patches = inner[row_count:]

    def filtered(tokens, basis, norm):
        analysis = basis.T if transpose else basis
        spectral = analysis @ tokens
        normed = F.layer_norm(spectral, (6,), getattr(part, f"{norm}_norm_weight"), getattr(part, f"{norm}_norm_bias"))
        return analysis.T @ (spectral + F.silu(normed @ part.filter_weight.T + part.filter_bias))

    added = filtered(patches, graph_basis(centers), "global")
    order = sorted(range(8), key=lambda index: (int(morton_keys(centers[index])), index))
    for members in (order[:4], order[4:]):
        added[members] = added[members] + filtered(patches[members], graph_basis(centers[members]), "local")
    inner = F.silu(inner)
    inner[row_count:] = inner[row_count:] + added
    return inner @ part.up_weight.T + part.up_bias


@pytest.mark.parametrize("transpose", [True, False])
def test_filter_by_hand(centers, transpose):
    torch.manual_seed(0)
    part = SpectralFilter(12, 6, has_global_graph=True)
    part.reset_parameters(False)
    features = torch.randn(3, 8 + 2, 12)
    order = morton_keys(centers).argsort(dim=1, stable=True)
    local = graph_basis(gather_points(centers, order).view(3, 2, 4, 3))
    with torch.no_grad():
        actual = part(features, Spectrum(graph_basis(centers), local, order), transpose)
        expected = [by_hand(part, 2, *cloud, transpose) for cloud in zip(features, centers, strict=True)]
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-5, atol=1e-5)


# -- Adapter ----------------------------------------------------------------------------------------------------------


def test_basis_is_computed_ahead(backbone, points, logits):
    model = get_peft_model(backbone, pp.PointGSTConfig(**CONFIG))
    expected, known = logits(model, points), model.precompute(points)
    stages = range(3 if backbone.config.model_type == "point_m2ae" else 1)
    names = {f"pointgst_default.{part}.{stage}" for part in ("local_basis", "order") for stage in stages}
    last = f"pointgst_default.basis.{stages[-1]}"
    assert {name for name in known if name.startswith("pointgst")} == names | {last}
    with torch.no_grad():
        assert torch.equal(model(points, precomputed=known).logits, expected)
        given = known | {last: -known[last]}
        assert not torch.allclose(model(points, precomputed=given).logits, expected)
        with pytest.raises(ValueError, match=r"precomputed\['.*basis.*'\].* must have shape \(4, .* got \(3, "):
            model(points, precomputed=known | {last: known[last][:3]})


def test_published_basis_depends_on_the_batch(make_backbone, points, logits):
    model = get_peft_model(make_backbone(), pp.PointGSTConfig(**CONFIG, basis="published"))
    assert not torch.allclose(logits(model, points)[:1], logits(model, points[:1]), atol=1e-4)
    own = {name for name in model.precompute(points) if not name.startswith("backbone.")}
    assert own == {"pointgst_default.order.0"}


def test_stages_with_a_graph_of_the_cloud(make_backbone, train):
    model = get_peft_model(make_backbone("point_m2ae"), pp.PointGSTConfig(**CONFIG, global_stages=[1]))
    names = [name for name, _ in model.named_parameters() if "global_norm_weight" in name]
    assert [name.split("stages.")[1][0] for name in names] == ["1"]
    train(model, steps=1)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_what_does_not_fit_the_backbone(make_backbone):
    with pytest.raises(ValueError, match=r"`local_size`=5 does not divide 16 tokens .* \[2, 4, 8, 16\]"):
        get_peft_model(make_backbone(), pp.PointGSTConfig(local_size=5))
    with pytest.raises(ValueError, match=r"`global_stages`=\[1\] names a stage that .*: its stages are \[0\]"):
        get_peft_model(make_backbone(), pp.PointGSTConfig(local_size=4, global_stages=[1]))


def test_fewer_tokens_than_a_local_graph_has(make_backbone, points, logits):
    small = get_peft_model(make_backbone(), pp.PointGSTConfig(**CONFIG | {"local_size": 16}))
    large = get_peft_model(make_backbone(), pp.PointGSTConfig(**CONFIG | {"local_size": 32}))
    large.load_state_dict(small.state_dict())
    assert torch.equal(logits(large, points), logits(small, points))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bottleneck_size": 0}, "`bottleneck_size` must be a number of at least 1, got 0"),
        ({"local_size": 1}, "`local_size` must be a number of at least 2, got 1"),
        ({"basis": "given"}, "`basis` must be one of 'cloud', 'published', got 'given'"),
        ({"global_stages": [-1]}, "`global_stages` must be a number of at least 0, got -1"),
    ],
)
def test_configuration(fields, message):
    with pytest.raises(ValueError, match=message):
        pp.PointGSTConfig(**fields)


@pytest.mark.parametrize(("num_labels", "num_groups", "head"), [(15, 128, 267_535), (40, 64, 273_960)])
def test_parameters_at_published_size(num_labels, num_groups, head):
    with torch.device("meta"):
        backbone = pp.PointMAEForClassification(pp.PointMAEConfig(num_labels=num_labels, num_groups=num_groups))
    model = get_peft_model(backbone, pp.PointGSTConfig())
    counts = dict.fromkeys(("down", "up", "filter", "global_norm", "local_norm", "class_token", "classifier"), 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            last = name.rpartition(".")[2] if "spectral_filter" in name else name
            (component,) = [component for component in counts if component in last]
            counts[component] += parameter.numel()
    assert counts == {
        "down": 166_320,
        "up": 170_496,
        "filter": 15_984,
        "global_norm": 864,
        "local_norm": 864,
        "class_token": 768,
        "classifier": head,
    }


def test_pictures(make_backbone, points):
    from point_peft_hf.visualization.inspection import inspect_cloud

    model = get_peft_model(make_backbone(), pp.PointGSTConfig(**CONFIG)).eval()
    names = [picture.name for picture in inspect_cloud(model, points[0]).pictures]
    assert names == ["local graph that the token belongs to", "slowest wave on the graph of the tokens"]


# -- Published files --------------------------------------------------------------------------------------------------


def published_tensors(rank, layers=(0, 1)):
    shapes = {"down": (rank, 24), "norm_ly1": (rank,), "norm_ly2": (rank,), "adapt1": (rank, rank), "up": (24, rank)}
    tensors = {"blocks.blocks.0.norm1.weight": torch.ones(24)}
    for layer in layers:
        for part, shape in shapes.items():
            tensors[f"blocks.blocks.{layer}.gft_adapter.{part}.weight"] = torch.randn(shape)
            tensors[f"blocks.blocks.{layer}.gft_adapter.{part}.bias"] = torch.randn(shape[0])
    return tensors


def test_published_file():
    tensors = published_tensors(5)
    published = read_published(tensors, {"local": 7}, "point_mae")
    assert (published.config.bottleneck_size, published.config.local_size) == (5, 7)
    assert list(published.base) == ["blocks.blocks.0.norm1.weight"]
    slot = "base_model.model.point_mae.encoder.layers.1.ffn_slot.pointgst_spectral_filter"
    assert torch.equal(
        published.weights[f"{slot}.local_norm_bias"], tensors["blocks.blocks.1.gft_adapter.norm_ly2.bias"]
    )
    assert len(published.weights) == 20
    assert any("single clouds only" in text for text in published.switches)
    assert read_published(tensors, {}, "point_mae").config.local_size == 32


def test_published_file_that_is_none():
    with pytest.raises(ValueError, match=r"of one rank in its blocks; this one has of the ranks \[3, 5\]"):
        read_published(published_tensors(5) | published_tensors(3, (1,)), {}, "point_mae")
    with pytest.raises(ValueError, match="this one has no `blocks.blocks.0.gft_adapter.down.bias`"):
        read_published({"norm.weight": torch.ones(3)}, {}, "point_mae")

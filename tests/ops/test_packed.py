"""Rows of many clouds one after the other."""

import torch

from point_peft_hf.ops import Clusters, cluster_max, cluster_mean, reorder, spread


def clusters():
    return Clusters.from_keys(torch.tensor([7, 3, 7, 9, 3, 7]))


def test_clusters_are_in_the_order_of_their_keys():
    found = clusters()
    assert found.parents.tolist() == [1, 0, 1, 2, 0, 1]
    assert found.members.tolist() == [1, 4, 0, 2, 5, 3]
    assert found.starts.tolist() == [0, 2, 5]
    assert found.firsts.tolist() == [1, 0, 3]


def test_mean_and_spread():
    rows = torch.arange(6.0)[:, None]
    assert cluster_mean(3 * rows, clusters()).flatten().tolist() == [7.5, 7, 9]
    assert spread(torch.tensor([[10.0], [20.0], [30.0]]), clusters()).flatten().tolist() == [20, 10, 20, 30, 10, 20]


def test_max_and_its_gradient():
    rows = torch.tensor([[1.0, 5], [2, 2], [4, 4], [0, -1], [3, 1], [2, 6]], requires_grad=True)
    largest = cluster_max(rows, clusters())
    assert largest.tolist() == [[3, 2], [4, 6], [0, -1]]
    largest.backward(torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
    assert rows.grad.tolist() == [[0, 0], [0, 2], [3, 0], [5, 6], [1, 0], [0, 4]]


def test_gradients():
    torch.manual_seed(0)
    rows, few = (torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in (6, 3))
    order = torch.randperm(6)
    inverse = order.argsort()
    assert torch.equal(reorder(reorder(rows, order, inverse), inverse, order), rows)
    assert torch.autograd.gradcheck(lambda rows: reorder(rows, order, inverse), (rows,))
    assert torch.autograd.gradcheck(lambda rows: cluster_max(rows, clusters()), (rows,))
    assert torch.autograd.gradcheck(lambda rows: spread(rows, clusters()), (few,))

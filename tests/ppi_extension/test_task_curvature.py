"""Curvature on a part of the graphs: what the part is, and the hypergradient with it by a second route."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ego_batches import ego_batch
from torch import Tensor
from torch_geometric.data import Data

from ecgmeta.bilevel import SGD, DoubleBackward, ForwardOverReverse, Neumann, Unroll, hypergradient
from ecgmeta.bilevel.trees import Tree, axpy, gradient, leaves, scale
from ecgmeta.runtime.errors import InputError
from ppi_extension.data.pyg import first_graphs
from ppi_extension.gnn import EgoGNN, TaskHead
from ppi_extension.problem import TaskProblem
from ppi_extension.task_weights import TaskWeights

TASKS, FINETUNE, GRAPHS = 7, 3, 4


def make(norm: Any = "none", dropout: float = 0.0) -> TaskProblem:
    torch.manual_seed(0)
    encoder = EgoGNN(width=5, layers=2, norm=norm, dropout=dropout).double()
    pretrain, finetune = (TaskHead(10, tasks).double() for tasks in (TASKS, FINETUNE))
    problem = TaskProblem(encoder, pretrain, finetune, TaskWeights(TASKS).double())
    with torch.no_grad():
        problem.phi["task_weights.z"].copy_(torch.linspace(-1, 1, TASKS))
    return problem


def graph(number: int, symmetric: bool = True) -> Data:
    """One graph, every label known."""
    return ego_batch(
        number, sizes=(4 + number,), pretrain=TASKS, finetune=FINETUNE, unlabelled=0.0, symmetric=symmetric
    )


def joined(graphs: list[Data]) -> Data:
    """A batch of single graphs, in this order."""
    sizes = torch.tensor([len(one.x) for one in graphs])
    starts = (sizes.cumsum(0) - sizes).tolist()

    def cat(name: str, shift: list[int] | None = None, dim: int = 0) -> Tensor:
        values = [one[name] for one in graphs]
        return torch.cat(
            [value + s for value, s in zip(values, shift or [0] * len(values), strict=True)], dim
        )

    return Data(
        x=cat("x"), edge_index=cat("edge_index", starts, 1), edge_attr=cat("edge_attr"),
        batch=torch.arange(len(graphs)).repeat_interleave(sizes), center_node_idx=cat("center_node_idx", starts),
        pretrain_labels=cat("pretrain_labels"), finetune_labels=cat("finetune_labels"),
    )  # fmt: skip


def direction(theta: Tree) -> Tree:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in theta.items()}


def close(found: Tree, expected: Tree, tolerance: float = 1e-12) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance * float(value.abs().max())
        )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_graphs_are_the_batch_of_them_alone(count: int, symmetric: bool) -> None:
    graphs = [graph(k, symmetric) for k in range(GRAPHS)]
    found, expected = first_graphs(joined(graphs), count), joined(graphs[:count])
    assert found.to_dict().keys() == expected.to_dict().keys()
    for name, value in expected.to_dict().items():
        assert found[name].equal(value), name


@pytest.mark.parametrize("route", [DoubleBackward, ForwardOverReverse])
@pytest.mark.parametrize("parts", [2, 4])
def test_products_on_all_parts_average_to_the_product_on_the_batch(route: Any, parts: int) -> None:
    """Without batch statistics, and with every label known, the loss is a mean over graphs."""
    problem, graphs = make(), [graph(k) for k in range(GRAPHS)]
    u = direction(problem.theta)

    def product(batch: Data) -> Tree:
        return route(lambda t, p: problem.pretrain_loss(t, p, batch), problem.theta, problem.phi).hvp(u)

    size = GRAPHS // parts
    total = {name: torch.zeros_like(value) for name, value in problem.theta.items()}
    for k in range(parts):
        turned = joined(graphs[k * size :] + graphs[: k * size])
        total = axpy(1 / parts, product(problem.curvature_batch(turned, 1 / parts)), total)
    close(total, product(joined(graphs)))


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("share", "count"), [(0.25, 1), (0.5, 2), (0.9, 3)])
def test_one_neumann_term_on_a_part_by_a_second_route(share: float, count: int, norm: str) -> None:
    """The sum written out, with products by double backward by hand, the part's on a batch made of those graphs alone."""
    problem, graphs = make(norm), [graph(k) for k in range(GRAPHS)]
    whole, part = joined(graphs), joined(graphs[:count])
    alpha, damping = 0.05, 0.1
    found = hypergradient(
        problem, problem.theta, problem.phi, problem.psi, pretrain_batch=whole, train_batches=[graph(5)],
        val_batch=graph(6), finetune=Unroll(1, SGD(0.1)), inverse=Neumann(1, alpha, damping, growth=10.0),
        products=DoubleBackward, curvature=share,
    )  # fmt: skip
    theta, phi, v = leaves(problem.theta), leaves(problem.phi), found.finetune.v

    def slope(batch: Data) -> Tree:
        weighted = problem.weights(phi) * problem.task_losses(theta, batch)
        return gradient(weighted.mean(), theta, create_graph=True)

    hv = gradient(list(slope(part).values()), theta, grad_outputs=list(v.values()))
    u = scale(alpha, axpy(-alpha, axpy(damping, v, hv), scale(2.0, v)))
    close(found.inverse.value, u, 1e-11)
    close(
        found.phi,
        scale(-1.0, gradient(list(slope(whole).values()), phi, grad_outputs=list(u.values()))),
        1e-11,
    )
    close(found.pretrain.gradient, {n: g.detach() for n, g in slope(whole).items()}, 1e-11)


def test_batch_statistics_and_dropout_are_the_parts_own_and_repeat() -> None:
    problem = make("batch", dropout=0.3)
    batch = joined([graph(k) for k in range(GRAPHS)])
    problem.at_step(3)
    part = problem.curvature_batch(batch, 0.5)
    losses = [
        float(problem.pretrain_loss(problem.theta, problem.phi, one).detach()) for one in (part, part, batch)
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("share", [0.0, -1.0, 1.0, 1.5, float("nan")])
def test_a_share_that_is_no_part_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"curvature: share: found .*, expected above 0 and below 1"):
        make().curvature_batch(joined([graph(0), graph(1)]), share)


@pytest.mark.parametrize(("graphs", "share", "least"), [(3, 0.25, 4), (1, 0.5, 2), (2, 0.3, 4)])
def test_a_batch_of_fewer_graphs_than_parts_is_refused(graphs: int, share: float, least: int) -> None:
    batch = joined([graph(k) for k in range(graphs)])
    with pytest.raises(InputError) as raised:
        make().curvature_batch(batch, share)
    assert (
        str(raised.value)
        == f"curvature: batch: found {graphs} graphs, expected at least {least}, to take a share of {share:g}"
    )


def test_rounding_takes_no_graph_away() -> None:
    batch = joined([graph(k % 3) for k in range(100)])
    assert len(make().curvature_batch(batch, 0.29).center_node_idx) == 29

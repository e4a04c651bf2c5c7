"""The task-weight problem: losses by hand, and its mixed product against the engine's generic routes in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ego_batches import ego_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ecgmeta.bilevel import (
    SGD,
    Adam,
    DoubleBackward,
    FeatureProblem,
    ForwardOverReverse,
    Identity,
    ImplicitHead,
    MetaState,
    Neumann,
    Schedule,
    Unroll,
    hypergradient,
    meta_train,
)
from ecgmeta.bilevel.hypergradient import MixedProductProblem
from ecgmeta.bilevel.products import Linearization
from ecgmeta.bilevel.trees import Tree, clone
from ecgmeta.runtime.errors import InputError
from ppi_extension.gnn import EgoGNN, TaskHead
from ppi_extension.problem import TaskProblem, finetune_loss, task_losses
from ppi_extension.task_weights import TRANSFORMS, TaskWeights
from tests.ppi_extension.data.ppi_graphs import small_store

TASKS, FINETUNE = 7, 3


def make(
    transform: Any = "sigmoid", dtype: torch.dtype = torch.float64, form: Any = "reduced", **settings: Any
) -> TaskProblem:
    torch.manual_seed(0)
    encoder = EgoGNN(width=5, layers=2, dropout=0.3, form=form)
    parts = encoder, TaskHead(10, TASKS), TaskHead(10, FINETUNE), TaskWeights(TASKS, transform)
    torch.nn.init.normal_(parts[3].z)
    return TaskProblem(*(part.to(dtype) for part in parts), **settings)  # type: ignore[arg-type]


def direction(theta: Tree) -> Tree:
    generator = torch.Generator().manual_seed(5)
    return {
        n: torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype)
        for n, v in theta.items()
    }


def close(found: Tree, expected: Tree, tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= tolerance * float(value.norm())
        assert float(value.norm()) > 0


def test_losses_are_means_over_labelled_examples() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.2, -0.7]], dtype=torch.float64)
    labels = torch.tensor([[1, -1, -1], [0, 1, -1]], dtype=torch.int8)

    def entropy(logit: float, label: float) -> Tensor:
        p = torch.tensor(logit, dtype=torch.float64).sigmoid()
        return -(label * p.log() + (1 - label) * (1 - p).log())

    expected = [(entropy(0.3, 1) + entropy(1.5, 0)) / 2, entropy(0.2, 1), torch.zeros(())]
    losses = task_losses(logits, labels)
    torch.testing.assert_close(losses, torch.stack(expected).double())
    torch.testing.assert_close(finetune_loss(logits, labels), (losses[0] + losses[1]) / 2)
    assert float(finetune_loss(logits, torch.full_like(labels, -1))) == 0


def test_with_all_entries_labelled_and_weights_one_it_is_hus_loss() -> None:
    problem, data = make(), ego_batch(1, pretrain=TASKS, unlabelled=0.0)
    torch.nn.init.zeros_(problem.pretrain.task_weights.z)
    head, encoder = problem.pretrain.head, problem.pretrain.encoder
    encoder.dropout = 0.0  # type: ignore[assignment]
    found = problem.pretrain_loss(problem.theta, problem.phi, data)
    expected = F.binary_cross_entropy_with_logits(head(encoder(data)), data.pretrain_labels.double())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_labels_of_another_shape_are_named() -> None:
    problem, data = make(), ego_batch(1, pretrain=4)
    with pytest.raises(InputError, match=r"labels: found \(4, 4\), expected \(4, 7\)"):
        problem.pretrain_loss(problem.theta, problem.phi, data)


def test_it_is_what_the_engine_looks_for() -> None:
    problem = make()
    assert isinstance(problem, MixedProductProblem)
    assert isinstance(problem, FeatureProblem)
    assert list(problem.phi) == ["task_weights.z"]
    assert len(problem.psi) == 2


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_tasks_trained_along_add_the_mean_of_their_losses_and_phi_moves_the_others_alone(
    transform: Any,
) -> None:
    problem = make(transform)
    whole, head = problem.pretrain, TaskHead(10, TASKS + FINETUNE).double()
    parts = whole.encoder, head, problem.finetune.head, whole.task_weights
    along = TaskProblem(*parts, along=FINETUNE, along_weight=0.7)  # type: ignore[arg-type]
    data, u = ego_batch(2, pretrain=TASKS + FINETUNE), direction(along.theta)
    losses = along.task_losses(along.theta, data)
    found = along.pretrain_loss(along.theta, along.phi, data)
    own = (whole.task_weights() * losses[:TASKS]).mean()
    torch.testing.assert_close(found, own + 0.7 * losses[TASKS:].mean(), rtol=1e-12, atol=0)
    point = DoubleBackward(lambda t, p: along.pretrain_loss(t, p, data), along.theta, along.phi)
    close(along.mixed_product(along.theta, along.phi, data, u), point.mixed(u))
    mixed, loss, slope = along.mixed_product_and_gradient(along.theta, along.phi, data, u)
    close(mixed, point.mixed(u))
    torch.testing.assert_close(loss, found.detach())
    close(slope, point.gradient)


@pytest.mark.parametrize("statistics", ["update", "batch", "frozen"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_mixed_product_is_the_generic_one(transform: Any, statistics: Any) -> None:
    """Dropout on, batch statistics in train mode (or frozen), a third of the labels missing."""
    problem, data = make(transform, statistics=statistics), ego_batch(2, pretrain=TASKS)
    assert bool((data.pretrain_labels < 0).any())
    u = direction(problem.theta)
    for step in (0, 3):
        problem.at_step(step, draw=1)
        found = problem.mixed_product(problem.theta, problem.phi, data, u)
        for route in (DoubleBackward, ForwardOverReverse):
            point = route(lambda t, p: problem.pretrain_loss(t, p, data), problem.theta, problem.phi)
            close(found, point.mixed(u))


@pytest.mark.parametrize("form", ["reduced", "plain"])
@pytest.mark.parametrize("statistics", ["update", "batch", "frozen"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_beside_the_gradient_the_mixed_product_is_the_generic_one(
    transform: Any, statistics: Any, form: Any
) -> None:
    """The plain form has torch's own layers, which keep their graphs: it costs more, and is as exact."""
    problem, data = make(transform, form=form, statistics=statistics), ego_batch(2, pretrain=TASKS)
    u = direction(problem.theta)
    for step in (0, 3):
        problem.at_step(step, draw=1)
        mixed, loss, slope = problem.mixed_product_and_gradient(problem.theta, problem.phi, data, u)
        point = DoubleBackward(lambda t, p: problem.pretrain_loss(t, p, data), problem.theta, problem.phi)
        close(mixed, point.mixed(u))
        assert torch.equal(loss, point.loss)
        for name, value in point.gradient.items():
            assert torch.equal(slope[name], value), name
        assert not any(value.requires_grad for value in (loss, *mixed.values(), *slope.values()))


@pytest.mark.parametrize("inverse", [Identity(0.5), Neumann(1, 0.05, growth=10.0)])
@pytest.mark.parametrize("curvature", [1.0, 0.5])
def test_a_step_takes_both_in_one_evaluation_where_no_graph_is_at_hand(
    inverse: Any, curvature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, taken = make(), []

    def note(name: str) -> None:
        function = getattr(problem, name)

        def noted(*arguments: Any) -> Any:
            taken.append(name)
            return function(*arguments)

        monkeypatch.setattr(problem, name, noted)

    note("mixed_product_and_gradient")
    note("mixed_product")
    settings = {"finetune": Unroll(1, SGD(0.1)), "inverse": inverse, "curvature": curvature} | batches()
    trees = problem.theta, problem.phi, problem.psi
    alone = hypergradient(problem, *trees, **settings)
    assert taken.pop() == "mixed_product"
    expected = alone.phi, alone.pretrain.gradient, float(alone.pretrain.loss)
    found = hypergradient(problem, *trees, recording=problem.recording(), **settings)
    held = (
        isinstance(inverse, Neumann) and curvature == 1
    )  # the graph of second derivatives brings the gradient
    assert taken == ["mixed_product" if held else "mixed_product_and_gradient"]
    close(found.phi, expected[0])
    close(found.pretrain.gradient, expected[1])
    assert float(found.pretrain.loss) == expected[2]
    buffers = dict(problem.pretrain.named_buffers())
    assert [int(n) for name, n in buffers.items() if name.endswith("num_batches_tracked")] == [1, 1]


def test_slopes_are_those_of_each_task_alone() -> None:
    problem, data = make(), ego_batch(3, pretrain=TASKS)
    u = direction(problem.theta)
    losses, slopes = problem.task_slopes(problem.theta, data, u)
    each = problem.task_losses(problem.theta, data)
    torch.testing.assert_close(losses, each.detach())
    for t in range(TASKS):
        grads = torch.autograd.grad(
            each[t],
            list(problem.theta.values()),
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        slope = sum(float((g * u[n]).sum()) for n, g in zip(problem.theta, grads, strict=True))
        assert float(slopes[t]) == pytest.approx(slope, rel=1e-10, abs=1e-14)


class Largest(TorchDispatchMode):
    """The most entries that any operation's result had."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return result


def test_nothing_of_tasks_times_parameters_is_built() -> None:
    tasks, data = 3000, ego_batch(2, pretrain=3000)
    encoder = EgoGNN(width=5, layers=2).double()
    problem = TaskProblem(
        encoder, TaskHead(10, tasks).double(), TaskHead(10, 3).double(), TaskWeights(tasks).double()
    )
    with Largest() as largest:
        problem.mixed_product(problem.theta, problem.phi, data, direction(problem.theta))
    # The head's own weights; the encoder alone would make 3000 rows of more than 400.
    assert largest.entries == tasks * 10
    assert sum(value.numel() for value in encoder.parameters()) > 400


def batches(seed: int = 0) -> dict[str, Any]:
    a, b, c = (ego_batch(seed + k, pretrain=TASKS, finetune=FINETUNE, unlabelled=0.1 * k) for k in range(3))
    return {"pretrain_batch": a, "train_batches": [b], "val_batch": c}


def never(*_: Any, **__: Any) -> Linearization:
    raise AssertionError("second derivatives were taken")


@pytest.mark.parametrize("inverse", [Identity(0.7), Neumann(0, 0.7)])
@pytest.mark.parametrize("encoder", [False, True])
def test_without_hessians_no_second_derivative_of_pretraining_is_taken(encoder: bool, inverse: Any) -> None:
    problem = make()
    settings: dict[str, Any] = {
        "finetune": Unroll(1, Adam(0.1), encoder=encoder),
        "inverse": inverse,
    } | batches()
    trees = problem.theta, problem.phi, problem.psi
    found = hypergradient(problem, *trees, products=never, **settings)
    generic = hypergradient(_Generic(problem), *trees, products=DoubleBackward, **settings)
    close(found.phi, generic.phi)
    close(found.pretrain.gradient, generic.pretrain.gradient)
    assert float(found.pretrain.loss) == float(generic.pretrain.loss)


@pytest.mark.parametrize("terms", [1, 5])
def test_with_hessians_it_is_the_generic_hypergradient(terms: int) -> None:
    problem = make("softmax")
    settings: dict[str, Any] = {
        "finetune": Unroll(1, SGD(0.1)),
        "inverse": Neumann(terms, 0.05, damping=0.1, growth=10.0),
    } | batches()
    trees = problem.theta, problem.phi, problem.psi
    close(
        hypergradient(problem, *trees, **settings).phi,
        hypergradient(_Generic(problem), *trees, **settings).phi,
    )


class _Generic:
    """The same problem without its own mixed product."""

    def __init__(self, problem: TaskProblem) -> None:
        self.pretrain_loss, self.finetune_loss = problem.pretrain_loss, problem.finetune_loss
        self.features, self.head_loss = problem.features, problem.head_loss


class Fixed:
    """The same batches at every step."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.pool = [ego_batch(k, pretrain=TASKS, finetune=FINETUNE, dtype=dtype) for k in range(4)]

    def pretrain(self, step: int) -> Any:
        return self.pool[0]

    def hyper(self, step: int, k: int) -> Any:
        return self.pool[1]

    def train(self, step: int, k: int) -> Any:
        return self.pool[2]

    def validation(self, step: int, k: int) -> Any:
        return self.pool[3]


def run(problem: Any, source: TaskProblem, **settings: Any) -> MetaState:
    state = MetaState(
        source.theta, source.phi, source.psi, torch.optim.Adam(source.theta.values(), 1e-2),
        torch.optim.Adam(source.phi.values(), 0.1, eps=1e-12),
    )  # fmt: skip
    for report in meta_train(
        problem, state, Fixed(), schedule=Schedule(6, period=2), finetune=Unroll(1, Adam(1e-2)),
        head_optimizer=Adam(1e-2), on_failure="raise", **settings,
    ):  # fmt: skip
        assert report.skipped is None
    return state


@pytest.mark.parametrize("share", [True, False])
def test_training_without_hessians_chooses_no_route_and_learns_as_the_generic_one(share: bool) -> None:
    problem, twin = make(), make()
    state = run(problem, problem, inverse=Identity(1.0), share=share)
    assert state.route is None
    expected = run(_Recording(twin), twin, inverse=Identity(1.0), share=share, products=DoubleBackward)
    close(clone(state.phi), clone(expected.phi), 1e-6)
    close(clone(state.theta), clone(expected.theta), 1e-6)
    for name, buffer in problem.pretrain.named_buffers():
        torch.testing.assert_close(buffer, dict(twin.pretrain.named_buffers())[name])


class _Recording(_Generic):
    def __init__(self, problem: TaskProblem) -> None:
        super().__init__(problem)
        self.recording, self.at_step = problem.recording, problem.at_step


def test_draws_that_theta_does_not_follow_take_no_gradient_of_pretraining() -> None:
    problem, found = make(), []
    for share in (True, False):
        state = MetaState(
            problem.theta, problem.phi, problem.psi, torch.optim.SGD(problem.theta.values(), 0.0),
            torch.optim.SGD(problem.phi.values(), 0.0),
        )  # fmt: skip
        (report,) = meta_train(
            problem, state, Fixed(), schedule=Schedule(1, period=1), finetune=Unroll(1, Adam(1e-2)),
            head_optimizer=Adam(1e-2), inverse=Identity(), share=share,
        )  # fmt: skip
        assert report.hyper is not None
        assert set(report.hyper.pretrain.gradient) == (set(problem.theta) if share else set())
        found.append(float(report.hyper.pretrain.loss))
    problem.at_step(0)
    for loss, batch in zip(found, (Fixed().pretrain(0), Fixed().hyper(0, 0)), strict=True):
        expected = problem.pretrain_loss(problem.theta, problem.phi, batch).detach()
        assert loss == pytest.approx(float(expected), rel=1e-12)


def test_training_with_hessians_does_choose_one() -> None:
    problem = make()
    assert run(problem, problem, inverse=Neumann(1, 1e-3)).route is not None


def test_the_implicit_head_takes_labelled_batches_only() -> None:
    problem = make()
    settings: dict[str, Any] = {
        "finetune": ImplicitHead(),
        "inverse": Identity(),
        "pretrain_batch": ego_batch(0, pretrain=TASKS),
    }
    trees = problem.theta, problem.phi, problem.psi
    whole = ego_batch(1, finetune=FINETUNE, unlabelled=0.0)
    assert hypergradient(problem, *trees, train_batches=[], val_batch=whole, **settings).ok
    with pytest.raises(InputError, match="unlabelled entries, expected none with the implicit head"):
        hypergradient(
            problem, *trees, train_batches=[], val_batch=ego_batch(1, finetune=FINETUNE), **settings
        )


def test_batches_of_a_store_are_what_it_reads(tmp_path: Path) -> None:
    """Eight channels make ten columns; labels of three values."""
    store, _ = small_store(tmp_path / "store", channels=8, values=(-1, 0, 1))
    torch.manual_seed(0)
    encoder = EgoGNN(channels=10, width=5, layers=2)
    problem = TaskProblem(
        encoder, TaskHead(10, 21), TaskHead(10, 3), TaskWeights(21, names=store.pretrain_terms)
    )
    trees = problem.theta, problem.phi, problem.psi
    a, b, c = (store.collate(np.arange(8 * k, 8 * k + 8)) for k in range(3))
    found = hypergradient(
        problem, *trees, pretrain_batch=a, train_batches=[b], val_batch=c, finetune=Unroll(1, SGD(0.1)),
        inverse=Identity(), products=never,
    )  # fmt: skip
    assert found.ok
    assert float(found.phi["task_weights.z"].abs().min()) > 0
    alone = encoder.eval()(store.collate(np.array([3])))
    torch.testing.assert_close(alone, encoder(store.collate(np.array([5, 3, 9])))[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, encoder(store[3]), rtol=1e-4, atol=1e-5)

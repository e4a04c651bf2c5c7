"""Hu's encoder: its size, its two forms against each other and against messages by hand, and its derivatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from ego_batches import ego_batch
from torch import Tensor, nn
from torch.func import functional_call
from torch_geometric.data import Data

from ecgmeta.runtime.errors import InputError
from ppi_extension.gnn import Aggregate, EgoGNN, HuConv, Neighbours, TaskHead, dropout


def twins(dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[EgoGNN, EgoGNN]:
    """The two forms with one set of parameters."""
    torch.manual_seed(0)
    settings = {"width": 6, "layers": 3} | settings
    reduced, plain = EgoGNN(**settings).to(dtype), EgoGNN(form="plain", **settings).to(dtype)
    plain.load_state_dict(reduced.state_dict())
    return reduced, plain


def test_the_default_network_has_hus_number_of_parameters() -> None:
    assert sum(p.numel() for p in EgoGNN().parameters()) == 2_726_100


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_forms_agree_in_values_and_gradients(
    dtype: torch.dtype, tolerance: float, symmetric: bool, train: bool
) -> None:
    data = ego_batch(1, dtype=dtype, symmetric=symmetric)
    data.x[::3] = 0  # both rows of the embedding
    found = []
    for model in twins(dtype):
        model.train(train)
        torch.manual_seed(3)  # the same dropout
        features = model(data)
        weights = torch.linspace(-1, 1, features.numel(), dtype=dtype).reshape(features.shape)
        loss = (features.tanh() * weights).sum()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        found.append([features, *grads])
    for a, b in zip(*found, strict=True):
        assert float((a - b).detach().abs().max()) <= tolerance * max(1.0, float(b.detach().abs().max()))


def test_at_hus_width_float32_loses_no_more_in_the_reduced_form() -> None:
    """Gradients are compared with float64: a ReLU near 0 jumps by rounding alone, in either form."""
    data = ego_batch(2, sizes=(20, 30), edges=400, dtype=torch.float32)
    found = {}
    for dtype in (torch.float32, torch.float64):
        for model in twins(dtype, width=300, layers=5):
            torch.manual_seed(0)
            features = model(data)
            grads = torch.autograd.grad(features.square().mean(), list(model.parameters()))
            found[model.form, dtype] = (
                features.detach().double(),
                torch.cat([g.flatten() for g in grads]).double(),
            )
    exact_features, exact = found["plain", torch.float64]
    values = [_error(found[form, torch.float32][0], exact_features) for form in ("reduced", "plain")]
    errors = [_error(found[form, torch.float32][1], exact) for form in ("reduced", "plain")]
    assert max(values[0], errors[0]) <= 1e-5
    assert errors[0] <= 2 * errors[1]
    assert _error(found["reduced", torch.float64][1], exact) <= 1e-12


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def test_a_layer_is_the_sum_of_messages_by_hand() -> None:
    model = EgoGNN(width=4, layers=1, dropout=0.0).double()
    data = ego_batch(3, sizes=(4, 3), edges=6)
    layer, n = model.layers[0], 7
    assert isinstance(layer, HuConv)
    assert layer.node_embedding is not None
    total = torch.zeros(n, 8, dtype=torch.float64)
    embedding = layer.node_embedding.weight[1]
    edges = [(int(s), int(t), a) for s, t, a in zip(*data.edge_index, data.edge_attr, strict=True)]
    edges += [(i, i, torch.eye(9, dtype=torch.float64)[7]) for i in range(n)]
    for _, target, attributes in edges:
        total[target] += torch.cat([embedding, layer.edge_encoder(attributes)])
    nodes = layer.finish(layer.hidden(total))
    expected = [
        torch.cat([nodes[:4].mean(0), nodes[data.center_node_idx[0]]]),
        torch.cat([nodes[4:].mean(0), nodes[data.center_node_idx[1]]]),
    ]
    torch.testing.assert_close(model(data), torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_graphs_of_a_batch_do_not_meet_without_batch_statistics() -> None:
    model = EgoGNN(width=5, layers=2, norm="none").double().eval()
    data = ego_batch(4, sizes=(5, 4), edges=8)
    second = Data(
        x=data.x[5:], edge_index=data.edge_index[:, 8:] - 5, edge_attr=data.edge_attr[8:],
        center_node_idx=data.center_node_idx[1:] - 5,
    )  # fmt: skip
    torch.testing.assert_close(model(second), model(data)[1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
def test_every_derivative_of_the_sum_over_neighbours(symmetric: bool) -> None:
    source, target = torch.tensor([[0, 1, 2, 2, 3], [1, 0, 1, 3, 3]])
    if symmetric:
        source, target = torch.cat([source, target]), torch.cat([target, source])
    into, out_of = Neighbours.of(source, target, 5), Neighbours.of(target, source, 5)
    h = torch.randn(5, 2, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    dense = torch.zeros(5, 5, dtype=torch.float64).index_put((target, source), torch.ones(()).double(), True)

    def function(h: Tensor) -> Tensor:
        return Aggregate.apply(h.sin(), into, out_of)

    torch.testing.assert_close(function(h), dense @ h.sin(), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(function, (h,), check_forward_ad=True, check_batched_grad=False)
    assert torch.autograd.gradgradcheck(function, (h,), check_fwd_over_rev=True)


@pytest.mark.parametrize("form", ["reduced", "plain"])
def test_second_derivatives_by_two_routes(form: Any) -> None:
    torch.manual_seed(0)
    model = EgoGNN(width=4, layers=2, form=form).double().train()
    data = ego_batch(5)
    names, values = zip(*model.named_parameters(), strict=True)
    direction = [torch.randn_like(v) for v in values]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def gradient(parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        held = {name: buffer.clone() for name, buffer in buffers.items()}
        features = functional_call(model, dict(zip(names, parameters, strict=True)) | held, (data,))
        return torch.autograd.grad(features.tanh().square().sum(), parameters, create_graph=True)

    reverse = torch.autograd.grad(gradient(values), values, direction, materialize_grads=True)
    with forward_ad.dual_level():
        duals = tuple(
            forward_ad.make_dual(v.detach().requires_grad_(), d)
            for v, d in zip(values, direction, strict=True)
        )
        forward = [forward_ad.unpack_dual(g).tangent for g in gradient(duals)]
    for a, b in zip(forward, reverse, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_dropout_drops_its_share_keeps_the_mean_and_is_one_in_every_precision() -> None:
    torch.manual_seed(0)
    found = dropout(torch.ones(200, 300), 0.3)
    assert sorted(set(found.flatten().tolist())) == pytest.approx([0, 1 / 0.7])
    assert float((found == 0).double().mean()) == pytest.approx(0.3, abs=0.01)
    torch.manual_seed(0)
    assert torch.equal(dropout(torch.ones(200, 300).double(), 0.3) == 0, found == 0)
    model, data = EgoGNN(width=5, layers=2, dropout=0.5), ego_batch(8, dtype=torch.float32)
    assert not torch.equal(model(data), model(data))
    model.eval()
    assert torch.equal(model(data), model(data))


def test_it_saves_and_loads(tmp_path: Path) -> None:
    model, _ = twins(torch.float32, dropout=0.4, norm="none")
    model.save_pretrained(tmp_path)
    again = EgoGNN.from_pretrained(tmp_path)
    assert (again.dropout, again.num_features, again.training) == (0.4, 12, False)
    data = ego_batch(6, dtype=torch.float32)
    assert torch.equal(again(data), model.eval()(data))
    with pytest.raises(InputError, match=r"model\.safetensors: found no such file"):
        EgoGNN.from_pretrained(_without_weights(tmp_path))


def _without_weights(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 7}, "EgoGNN: channels: found 7"),
        ({"width": 0}, "width"),
        ({"layers": 0}, "layers"),
        ({"dropout": 1.0}, "dropout"),
        ({"form": "fast"}, "form: found fast, expected 'reduced' or 'plain'"),
        ({"norm": "layer"}, "norm"),
    ],
)
def test_settings_out_of_range_are_named(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EgoGNN(**settings)


def test_a_batch_of_another_shape_is_named() -> None:
    model, data = EgoGNN(width=4, layers=1).double(), ego_batch(7)
    with pytest.raises(InputError, match=r"edge_attr: found \(48, 8\), expected \(edges, 9\)"):
        model(Data(**{**data.to_dict(), "edge_attr": data.edge_attr[:, :8]}))
    with pytest.raises(InputError, match="22 nodes of 4 graphs"):
        model(Data(**{**data.to_dict(), "center_node_idx": data.center_node_idx[:2]}))


def test_the_head_gives_a_logit_a_task() -> None:
    head: nn.Module = TaskHead(12, 5)
    assert head(torch.zeros(3, 12)).shape == (3, 5)

"""The reference algorithm, for comparison: written anew from its description, with the choices that make it cost what it does.

One-dimensional convolutions in contiguous layout, one encoder pass a view, NT-Xent as a broadcast tensor, views made in
NumPy one record at a time, a head unroll with an encoder pass a step inside the graph, Neumann by double backward on a
batch of its own, and a head step that is not detached from the encoder. Left out, so that nothing here is slower than the
algorithm: the released code's second, dead encoder pass a step; and the flow is integrated once a record, not once a lead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ecgmeta.augment.functional import smoothing_kernel
from ecgmeta.bilevel import Adam
from ecgmeta.bilevel.trees import Tree, axpy, gradient, leaves, scale
from ecgmeta.experiment.batches import Labelled

Floats = np.ndarray
Loss = Callable[[Tree, Tree, Any], Tensor]
Pair = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(channels_in, channels, 15, stride, 7, bias=False),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 15, 1, 7, bias=False),
            nn.BatchNorm1d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv1d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm1d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Encoder(nn.Module):
    """ResNet-18 over time: the architecture of ``create_encoder("resnet18")``."""

    def __init__(self, leads: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv1d(leads, width, 15, 2, 7, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        ]
        channels = width
        for stage in range(4):
            for block in range(2):
                layers.append(Block(channels, width * 2**stage, 2 if stage and not block else 1))
                channels = width * 2**stage
        self.layers, self.num_features = nn.Sequential(*layers), channels

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(-1)


class Warp(nn.Module):
    """The paper's learned warp through ``grid_sample`` on the record repeated per lead."""

    def __init__(self, leads: int, magnitude: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (leads, 32, 32, 32):
            layers += [nn.Conv1d(channels, 32, 15, stride=2), nn.BatchNorm1d(32), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 1))
        self.global_magnitude = nn.Parameter(torch.tensor([magnitude]))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """(batch, leads, samples), noise (batch, samples)."""
        batch, leads, n = x.shape
        magnitude = 2 * torch.sigmoid(self.net(x)) * self.global_magnitude.square()
        flow = (100 * magnitude * noise).unsqueeze(1)
        flow = F.interpolate(flow, size=n // 4, mode="linear") / 4 / 2**5
        for _ in range(5):
            flow = flow + resample(flow, flow)
        flow = F.interpolate(4 * flow, size=n, mode="linear")
        flow = F.conv1d(flow, smoothing_kernel(25).to(flow), padding=12)
        return resample(x.reshape(batch * leads, 1, n), flow.repeat_interleave(leads, 0)).view_as(x)


def resample(x: Tensor, displacement: Tensor) -> Tensor:
    """``x(t + d(t))``; both (batch, 1, samples). Its double backward exists for four-dimensional input (torch 2.14)."""
    n = x.shape[-1]
    t = torch.arange(n, dtype=x.dtype, device=x.device) + displacement.squeeze(1)
    grid = torch.stack([2 * t / (n - 1) - 1, torch.zeros_like(t)], -1).unsqueeze(1)
    return F.grid_sample(x.unsqueeze(2), grid, align_corners=True).squeeze(2)


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """NT-Xent from a (2N, 2N, features) tensor of broadcast products."""
    z = torch.cat([first, second])
    similarity = F.cosine_similarity(z.unsqueeze(1), z.unsqueeze(0), dim=-1) / temperature
    similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
    return F.cross_entropy(similarity, torch.arange(len(z), device=z.device).roll(len(first)))


def numpy_view(record: Floats, rng: np.random.Generator) -> Floats:
    """One record (leads, samples) with a stretch of each lead set to 0, and white noise, lead by lead."""
    view, n = record.copy(), record.shape[-1]
    for lead in view:
        length = int(rng.integers(n)) // 2
        start = int(rng.integers(n - length + 1))
        lead[start : start + length] = 0
        lead += rng.uniform(0, 0.1) * lead.std() * rng.standard_normal(n, dtype=np.float32)
    return view


def two_views(x: Floats, rng: np.random.Generator) -> Pair:
    pairs = [(numpy_view(record, rng), numpy_view(record, rng)) for record in x]
    first, second = (torch.from_numpy(np.stack(views)) for views in zip(*pairs, strict=True))
    return first, second


def hypergradient(
    pretrain_loss: Loss,
    finetune_loss: Loss,
    theta: Mapping[str, Tensor],
    phi: Mapping[str, Tensor],
    psi: Mapping[str, Tensor],
    *,
    pretrain_batch: Any,
    train_batches: Sequence[Any],
    val_batch: Any,
    optimizer: Adam,
    terms: int,
    alpha: float,
) -> Tree:
    """``−Mᵀ · α Σ_{j≤J} (I − αH)ʲ v`` as a textbook writes it: everything in the graph, everything by double backward."""
    theta, phi, head = leaves(theta), leaves(phi), leaves(psi)
    state = optimizer.init(head)
    for batch in train_batches:
        step = gradient(finetune_loss(theta, head, batch), head, create_graph=True)
        head, state = optimizer.update(head, step, state)
    total = term = gradient(finetune_loss(theta, head, val_batch), theta)
    graph = gradient(pretrain_loss(theta, phi, pretrain_batch), theta, create_graph=True)

    def product(inputs: Tree, u: Tree) -> Tree:
        return gradient(list(graph.values()), inputs, grad_outputs=list(u.values()), retain_graph=True)

    for _ in range(terms):
        term = axpy(-alpha, product(theta, term), term)
        total = axpy(1.0, term, total)
    return scale(-1.0, product(phi, scale(alpha, total)))


class Reference:
    """The reference's training state and its kinds of step, on one batch of records."""

    def __init__(self, x: Tensor, y: Tensor, width: int, *, lr: float = 1e-4, device: str = "cpu") -> None:
        leads, self.lr, self.device = x.shape[1], lr, device
        self.x, self.rng = x.numpy(), np.random.default_rng(0)
        self.labelled = Labelled(x.to(device), y.to(device))
        encoder, self.warp = Encoder(leads, width), Warp(leads).to(device)
        n = encoder.num_features
        projector = nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 128))
        self.net = nn.ModuleDict({"encoder": encoder, "projector": projector}).to(device)
        self.head = nn.Linear(n, y.shape[1]).to(device)
        self.theta: Tree = dict(self.net.named_parameters())
        self.phi: Tree = dict(self.warp.named_parameters())
        self.psi: Tree = dict(self.head.named_parameters())
        self.optimizers = [
            torch.optim.Adam(tree.values(), lr=lr) for tree in (self.theta, self.phi, self.psi)
        ]

    def pretrain_loss(self, theta: Tree, phi: Tree, batch: Pair, *, warped: bool = True) -> Tensor:
        """One encoder pass a view; the views are warped with the current φ."""
        outputs = []
        for view in batch:
            if warped:
                view = functional_call(self.warp, phi, (view, torch.randn_like(view[:, 0])))
            outputs.append(self._part("projector", theta, self._part("encoder", theta, view)))
        return nt_xent(outputs[0], outputs[1])

    def finetune_loss(self, theta: Tree, psi: Tree, batch: Labelled) -> Tensor:
        """The encoder is part of the graph, whether or not its derivative is asked for."""
        logits = functional_call(self.head, psi, (self._part("encoder", theta, batch.x),))
        return F.binary_cross_entropy_with_logits(logits, batch.y)

    def _views(self) -> Pair:
        first, second = two_views(self.x, self.rng)
        return first.to(self.device), second.to(self.device)

    def plain_step(self, *, warped: bool = False) -> None:
        loss = self.pretrain_loss(self.theta, self.phi, self._views(), warped=warped)
        self._apply(0, self.theta, gradient(loss, self.theta))

    def head_step(self) -> None:
        """Not detached: the gradient of the encoder is computed, and dropped."""
        grads = gradient(self.finetune_loss(self.theta, self.psi, self.labelled), self.theta | self.psi)
        self._apply(2, self.psi, grads)

    def phi_step(self, steps: int, terms: int) -> None:
        grads = hypergradient(
            self.pretrain_loss,
            self.finetune_loss,
            self.theta,
            self.phi,
            self.psi,
            pretrain_batch=self._views(),
            # One object, but the encoder passes over it all the same at every step.
            train_batches=[self.labelled] * steps,
            val_batch=self.labelled,
            optimizer=Adam(self.lr),
            terms=terms,
            alpha=self.lr,
        )
        self._apply(1, self.phi, grads)

    def train(self, steps: int, period: int, terms: int) -> None:
        """Pre-training with K = 1: every P-th batch a φ step, every other batch a head step."""
        for step in range(1, steps + 1):
            self.plain_step(warped=True)
            if step % period:
                self.head_step()
            else:
                self.phi_step(1, terms)

    def _part(self, name: str, theta: Tree, x: Tensor) -> Tensor:
        start = f"{name}."
        own = {key[len(start) :]: value for key, value in theta.items() if key.startswith(start)}
        return functional_call(self.net[name], own, (x,))

    def _apply(self, which: int, params: Tree, grads: Tree) -> None:
        for name, value in params.items():
            value.grad = grads[name]
        self.optimizers[which].step()
        self.optimizers[which].zero_grad()

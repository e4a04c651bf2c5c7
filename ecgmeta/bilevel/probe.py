"""Which route to the products: each is timed and compared with double backward on the problem at hand."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ecgmeta.bilevel.distributed import Reduce, local
from ecgmeta.bilevel.products import DoubleBackward, ForwardOverReverse, Loss, LowPrecision, Products
from ecgmeta.bilevel.trees import Tree, axpy, norm

ROUTES: dict[str, Products] = {
    "double_backward": DoubleBackward,
    "forward_over_reverse": ForwardOverReverse,
    "low_precision": LowPrecision(),
}
"""Routes that compete to be the default, by the name that a checkpoint keeps. Differences of gradients are not among them."""


def route_name(route: Products) -> str:
    """The name of one of :data:`ROUTES`."""
    return next(name for name, known in ROUTES.items() if known is route)


@dataclass(frozen=True)
class Probe:
    """One route measured against double backward on a problem.

    Attributes:
        route: the route.
        hvp_error, mixed_error: relative error of each product on a random direction; infinite where the route fails.
        seconds: time of one product of each kind.
        failure: why the route cannot be taken, or an empty string.
    """

    route: Products
    hvp_error: float
    mixed_error: float
    seconds: float
    failure: str = ""

    @property
    def error(self) -> float:
        return max(self.hvp_error, self.mixed_error)


def probe(
    route: Products,
    loss: Loss,
    theta: Mapping[str, Tensor],
    phi: Mapping[str, Tensor],
    u: Tree,
    reference: tuple[Tree, Tree],
) -> Probe:
    """Time a route and compare its ``Hu`` and ``Mᵀu`` with ``reference``."""
    start = time.perf_counter()
    try:
        point = route(loss, theta, phi)
        found = point.hvp(u), point.mixed(u)
    except (
        RuntimeError,
        NotImplementedError,
    ) as error:  # what torch raises for a derivative that it does not have
        return Probe(route, float("inf"), float("inf"), float("inf"), str(error).splitlines()[0])
    seconds = time.perf_counter() - start
    errors = [_relative(a, b) for a, b in zip(found, reference, strict=True)]
    return Probe(route, errors[0], errors[1], seconds)


def _everywhere(found: Probe, reduce: Reduce) -> Probe:
    numbers = torch.tensor([found.hvp_error, found.mixed_error, found.seconds], dtype=torch.float64)
    hvp, mixed, seconds = reduce({"probe": numbers})["probe"].tolist()
    return replace(found, hvp_error=hvp, mixed_error=mixed, seconds=seconds)


def choose_products(
    loss: Loss,
    theta: Mapping[str, Tensor],
    phi: Mapping[str, Tensor],
    *,
    candidates: Sequence[Products] | None = None,
    tolerance: float = 3e-2,
    seed: int = 0,
    reduce: Reduce = local,
) -> tuple[Products, list[Probe]]:
    """The fastest candidate whose products agree with double backward on this problem, and every candidate's probe.

    Args:
        candidates: routes to try, by default those of :data:`ROUTES`; add ``CentralDifference(step)`` to let it compete.
        tolerance: largest relative error of a product; 3 % is a cosine of 0.9995. Exact routes differ by rounding alone, which
            a badly conditioned loss amplifies.
        seed: of the random direction.
        reduce: mean over data-parallel ranks, so that all choose alike.

    Raises:
        RuntimeError: double backward itself fails here, so nothing can be compared.
    """
    if candidates is None:
        single = all(value.dtype == torch.float32 for value in theta.values())
        # Whoever computes in double precision did not ask for a lower one.
        candidates = [route for name, route in ROUTES.items() if single or name != "low_precision"]
    generator = torch.Generator().manual_seed(seed)
    u = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype).to(v.device) for n, v in theta.items()}
    point = DoubleBackward(loss, theta, phi)
    reference = point.hvp(u), point.mixed(u)
    del point  # its graph would stand beside the others'
    probes = [_everywhere(probe(route, loss, theta, phi, u, reference), reduce) for route in candidates]
    passed = [p for p in probes if p.error <= tolerance]
    return (min(passed, key=lambda p: p.seconds).route if passed else DoubleBackward), probes


def _relative(found: Tree, expected: Tree) -> float:
    size = float(norm(expected))
    error = float(norm(axpy(-1.0, expected, found)))
    return error / size if size else error

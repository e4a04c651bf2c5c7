"""The contract of an augmentation: what each one checks, draws and promises, in one place.

An operation is a pure function ``op(x, magnitude, *, noise, ...)``: deterministic given its noise, differentiable in the
magnitude and in x, dtype-preserving, and the identity at magnitude 0. :func:`operation` adds the checks that all share and
lists it in :data:`OPERATIONS`, where modules find what to draw, what is moderate and which unit it has.
"""

from __future__ import annotations

import importlib
import inspect
import math
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, SupportsIndex, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgmeta.runtime.errors import InputError

ELECTRODES = 9
"""Of a 12-lead record: RA, LA, LL, V1..V6."""

TRIED = 512
"""Samples of the record that settings are tried on."""

Rest = ParamSpec("Rest")


@dataclass(frozen=True)
class Noise:
    """What one augmentation of a batch draws.

    Args:
        kind: standard normal, or uniform on [0, 1).
        dims: shape behind the batch: numbers, or ``"leads"``, ``"samples"``, ``"bins"`` (of a real Fourier transform),
            ``"electrodes"`` (9 for 12 leads, whose noise then obeys the limb-lead identities; else one a lead).
    """

    kind: Literal["normal", "uniform"]
    dims: tuple[int | str, ...]

    def shape(self, x: Tensor) -> tuple[int, ...]:
        batch, leads, samples = x.shape
        known: dict[int | str, int] = {
            "leads": leads,
            "samples": samples,
            "bins": samples // 2 + 1,
            "electrodes": ELECTRODES if leads == 12 else leads,
        }
        return (batch, *(known[dim] if isinstance(dim, str) else dim for dim in self.dims))

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Of x's device; of x's dtype, but at least float32."""
        maker = torch.randn if self.kind == "normal" else torch.rand
        return maker(self.shape(x), generator=generator, device=x.device, dtype=wide(x.dtype))


@dataclass(frozen=True)
class Operation:
    """What is known about an operation.

    Attributes:
        name: of the function in :mod:`ecgmeta.augment.functional`.
        function: the operation without its checks.
        noise: what it draws; None where the user supplies it.
        unit: of the magnitude: ``"s"``, ``"mV"``, ``"degrees"``, or ``"1"`` for fractions and ratios.
        typical: a moderate magnitude, from which learning may start.
        limit: the largest magnitude that means anything; infinite where there is none.
        per_lead: whether each lead may have its own magnitude.
        identities: whether the limb-lead identities of x survive it (with one magnitude for all leads).
        leads: exactly so many leads in the standard order are needed; 0: any.
    """

    name: str
    function: Callable[..., Tensor]
    noise: Noise | None
    unit: str
    typical: float
    limit: float
    per_lead: bool
    identities: bool
    leads: int
    timed: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "timed", "fs" in inspect.signature(self.function).parameters)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        # By name where it is listed: what its module has under that name is the function with its checks, another object.
        if OPERATIONS.get(self.name) is self:
            return _listed, (self.function.__module__, self.name)
        return super().__reduce_ex__(protocol)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The noise of one augmentation of x."""
        if self.noise is None:
            raise InputError(self.name, "noise", None, "recordings of noise, given by the caller")
        return self.noise.draw(x, generator)

    def apply(self, x: Tensor, magnitude: Tensor, noise: Tensor, fs: float, **settings: Any) -> Tensor:
        """The function without the checks; ``magnitude`` broadcastable to (batch, leads, 1)."""
        rate = {"fs": fs} if self.timed else {}
        return self.run(x, magnitude, noise=noise, **rate, **settings)

    def run(self, x: Tensor, magnitude: Tensor, **settings: Any) -> Tensor:
        """The function, in the precision of its arguments: autocast would round positions to whole samples."""
        with torch.autocast(x.device.type, enabled=False):
            return self.function(x, magnitude, **settings)

    @torch.no_grad()
    def check_settings(self, fs: float, leads: int, settings: Mapping[str, Any]) -> None:
        """Raise :class:`InputError` unless the function takes these settings at this rate, where it is tried on a record."""
        known = set(inspect.signature(self.function).parameters) - {"x", "magnitude", "noise", "fs"}
        for name in settings:
            if name not in known:
                wanted = ", ".join(sorted(known)) or "none"
                raise InputError(self.name, f"setting {name}", "no such one", wanted)
        if self.noise is None:
            return
        # The middle of what is drawn, so that no generator moves.
        x = torch.linspace(-1.0, 1.0, TRIED, device="cpu").expand(1, leads, -1)
        noise = torch.full(self.noise.shape(x), 0.5, device="cpu")
        magnitude = torch.full((1, 1, 1), self.typical, device="cpu")
        found = dict(settings)
        wanted = "what it can work with" + (f" at {fs:g} Hz" if self.timed else "")
        try:
            result = self.apply(x, magnitude, noise, fs, **settings)
        except InputError:
            raise
        except Exception as error:  # whatever its arithmetic makes of a text, or of a number beyond all sense
            raise InputError(self.name, "settings", f"{found} ({error})", wanted) from error
        if not concretely(lambda: bool(result.isfinite().all())):
            raise InputError(self.name, "settings", f"{found} (its result is not finite)", wanted)

    def check(self, x: Tensor, magnitude: Tensor | float, noise: Tensor, **settings: Any) -> Tensor:
        """The magnitude as the function takes it.

        Raises:
            InputError: naming the operation, what was found and what it expects.
        """
        check_records(self.name, x, self.leads)
        self._check_noise(x, noise)
        if self.timed and not 0 < settings.get("fs", math.nan) < math.inf:
            raise InputError(self.name, "fs", settings.get("fs"), "the sampling rate of x in Hz")
        shaped = self._shaped(x, torch.as_tensor(magnitude, dtype=x.dtype, device=x.device))
        if not concretely(lambda: bool(((shaped >= 0) & (shaped <= self.limit)).all())):
            worst = shaped.detach()[~((shaped >= 0) & (shaped <= self.limit))][0].item()
            bounds = f"0 to {self.limit:g}" if self.limit < math.inf else "0 or more"
            raise InputError(
                self.name, "magnitude", f"{worst:.4g}", bounds + (f" {self.unit}" if self.unit != "1" else "")
            )
        return shaped

    def _check_noise(self, x: Tensor, noise: Tensor) -> None:
        found = tuple(noise.shape)
        if self.noise is not None:
            if found != self.noise.shape(x):
                raise InputError(self.name, "shape of noise", found, self.noise.shape(x))
            return
        batch, leads, samples = x.shape
        if found not in {(batch, 1, samples), (batch, leads, samples)}:
            raise InputError(self.name, "shape of noise", found, f"({batch}, 1 or {leads}, {samples})")
        if not concretely(lambda: bool(noise.isfinite().all())):
            raise InputError(self.name, "noise", "samples that are not finite", "finite recordings")

    def _shaped(self, x: Tensor, magnitude: Tensor) -> Tensor:
        batch, leads, _ = x.shape
        if magnitude.ndim == 0:
            return magnitude.view(1, 1, 1)
        if magnitude.shape == (batch,):
            return magnitude.view(batch, 1, 1)
        lead_sizes = (1, leads) if self.per_lead else (1,)
        if magnitude.ndim != 3 or not (
            magnitude.shape[0] in (1, batch) and magnitude.shape[1] in lead_sizes and magnitude.shape[2] == 1
        ):
            each_lead = f" or {leads}" if self.per_lead else ""
            wanted = f"one number, ({batch},), or (1 or {batch}, 1{each_lead}, 1)"
            raise InputError(self.name, "shape of magnitude", tuple(magnitude.shape), wanted)
        return magnitude


OPERATIONS: dict[str, Operation] = {}
"""Every operation by name."""


def _listed(module: str, name: str) -> Operation:
    importlib.import_module(module)  # which lists it, where a new process has not come by it yet
    return OPERATIONS[name]


def operation(
    *,
    noise: Noise | None,
    unit: str,
    typical: float,
    limit: float = math.inf,
    per_lead: bool = True,
    identities: bool = True,
    leads: int = 0,
) -> Callable[
    [Callable[Concatenate[Tensor, Tensor, Rest], Tensor]],
    Callable[Concatenate[Tensor, Tensor | float, Rest], Tensor],
]:
    """Make a function an operation: its checks run before it, and :data:`OPERATIONS` lists it. See :class:`Operation`."""

    def register(
        function: Callable[Concatenate[Tensor, Tensor, Rest], Tensor],
    ) -> Callable[Concatenate[Tensor, Tensor | float, Rest], Tensor]:
        name = function.__name__
        spec = Operation(name, function, noise, unit, typical, limit, per_lead, identities, leads)
        OPERATIONS[name] = spec

        @wraps(function)
        def checked(x: Tensor, magnitude: Tensor | float, *, noise: Tensor, **settings: Any) -> Tensor:
            shaped = spec.check(x, magnitude, noise, **settings)
            return spec.run(x, shaped, noise=noise, **settings)

        return cast(Callable[Concatenate[Tensor, Tensor | float, Rest], Tensor], checked)

    return register


def check_records(name: str, x: Tensor, leads: int = 0) -> None:
    """Raise :class:`InputError` unless x is (batch, leads, samples) of finite numbers; with ``leads`` leads, if not 0.

    More leads than samples is the other layout, (batch, samples, leads), in every real recording.
    """
    check_layout(name, x, leads)
    check_finite(name, x)


def check_layout(name: str, x: Tensor, leads: int = 0) -> None:
    """:func:`check_records` without a look at the numbers."""
    if not isinstance(x, Tensor):
        raise InputError(name, "x", type(x).__name__, "a torch tensor (batch, leads, samples)")
    if x.ndim != 3 or x.shape[1] > x.shape[2]:
        raise InputError(
            name, "shape of x", tuple(x.shape), "(batch, leads, samples) with more samples than leads"
        )
    if leads and x.shape[1] != leads:
        raise InputError(name, "leads of x", x.shape[1], f"{leads}: I, II, III, aVR, aVL, aVF, V1..V6")
    if not x.is_floating_point():
        raise InputError(name, "dtype of x", x.dtype, "floating point, in mV")


def check_finite(name: str, x: Tensor, means: Tensor | None = None) -> None:
    """Raise :class:`InputError` unless x (batch, leads, samples) is finite; ``means``, to which every sample of x contributes,
    are fewer numbers to look at."""
    # One cheap pass; only a sum that is not finite (which may be an overflow) is worth the second.
    total = (x if means is None else means).detach().sum()
    if not concretely(lambda: bool(total.isfinite() or x.isfinite().all())):
        row = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
        raise InputError(name, "samples of x", f"one that is not finite in record {row}", "finite mV")


def concretely(question: Callable[[], bool]) -> bool:
    """The answer where tensors have values; True while torch.compile traces or vmap batches, where they have none."""
    if torch.compiler.is_compiling():
        return True
    try:
        return question()
    except RuntimeError:
        return True


def wide(dtype: torch.dtype) -> torch.dtype:
    """``dtype``, but at least float32: sample positions and Fourier transforms need it."""
    return torch.promote_types(dtype, torch.float32)


CHUNK = 1 << 18
"""Numbers of x that are worked on at once on a CPU: with what is derived from them they stay in its cache."""


def records_in_cache(x: Tensor) -> int:
    """How many records of x are worked on at once."""
    return max(1, CHUNK // max(1, x.shape[1] * x.shape[2]))


def at_hand(*tensors: Tensor) -> bool:
    """Whether these are plain numbers in a CPU's memory: none needs a graph, no compiler traces, no transform wraps them."""
    if tensors[0].device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    try:
        return all(tensor.untyped_storage() is not None for tensor in tensors)
    except NotImplementedError:  # under torch.func
        return False


MOST_KEPT = 1 << 26  # bytes of the largest batch whose memory waits for the next
_FREE: deque[NDArray[np.uint8]] = deque(maxlen=4)
LARGE_PAGE = 1 << 21  # bytes; NumPy asks the system for such pages for twice as much memory, or more


def fresh(like: Tensor, records: int) -> Tensor:
    """Memory for so many records like those of ``like``, on a CPU in large pages where the system has them: in small ones the
    first write to a batch takes a third of the time of its augmentation."""
    shape = (records, *like.shape[1:])
    size = math.prod(shape) * like.element_size()
    if size < 2 * LARGE_PAGE or like.dtype == torch.bfloat16 or not at_hand(like):  # unknown to NumPy
        return like.new_empty(shape)
    # Large pages begin at multiples of their size; what lies before and behind them is never touched.
    memory = _taken(size + 2 * LARGE_PAGE)
    first = -memory.ctypes.data % LARGE_PAGE
    kind = like.new_empty(0).numpy().dtype
    numbers = memory[first : first + size].view(kind).reshape(shape)
    if size <= MOST_KEPT:
        weakref.finalize(numbers, _FREE.append, memory).atexit = False
    # Not a view to autograd: who is given it may write to it.
    return torch.from_numpy(numbers)


def _taken(size: int) -> NDArray[np.uint8]:
    """Memory of a batch that nobody holds any more, or new: the system takes as long to clear a page as we do to fill it."""
    for _ in range(len(_FREE)):
        try:  # each step is one of the deque's own: what ends meanwhile, in any thread, is put behind
            memory = _FREE.popleft()
        except IndexError:
            break
        if len(memory) == size:
            return memory
        _FREE.append(memory)
    return np.empty(size, dtype=np.uint8)


def in_cache(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, some records at a time: twice as fast where no graph is built and memory is not a GPU's.

    Args:
        function: of each record by itself.
        tensors: (batch, leads, samples), the first; (batch or 1, ...), the others.
    """
    x, records = tensors[0], records_in_cache(tensors[0])
    if len(x) <= records or not at_hand(*tensors):
        return function(*tensors)
    if any(len(tensor) != len(x) for tensor in tensors):
        tensors = tuple(tensor.expand(len(x), -1, -1) for tensor in tensors)
    result, place = torch.empty(0), 0
    for parts in zip(*(tensor.split(records) for tensor in tensors), strict=True):
        part = function(*parts)
        if place == 0:
            result = fresh(part, len(x))
        # Copied at once, so that its memory serves the next: fresh memory costs more than the work on it.
        result[place : place + len(part)] = part
        place += len(part)
    return result

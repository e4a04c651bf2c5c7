"""A learned policy: which operations, how often and how strongly; all of it φ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgmeta.augment.functional import OPERATIONS, Operation
from ecgmeta.augment.functional.operation import check_finite, concretely
from ecgmeta.augment.learned import NETWORK_HZ, Augmenter, Learned, OpinionNetwork, evaluated
from ecgmeta.augment.taskaug import TASKAUG_OPERATIONS
from ecgmeta.augment.transforms import MIXING
from ecgmeta.runtime.errors import InputError

IDENTITY = "identity"
"""The operation that does nothing; a policy may choose it."""
DEFAULT_OPERATIONS = (
    "time_warp",
    "baseline_wander",
    "muscle_noise",
    "white_noise",
    "gain",
    "time_mask",
    "lead_dropout",
    IDENTITY,
)
COUNTS_SAMPLES = ("paper_warp",)
"""Operations whose magnitudes and windows are in samples, so that they mean something else at another rate."""


@dataclass(frozen=True)
class Draw:
    """Everything random about one augmentation of a batch by a policy.

    Attributes:
        choice: (batch, stages), the operation's number.
        applied: (batch, stages), whether the gate lets it through.
        kind: (batch,), which class's magnitudes hold.
        log_prob: (batch,), of choices and gates under the φ that drew them.
        noise: for each stage, for each operation: the records it has, and its noise for them.
    """

    choice: Tensor
    applied: Tensor
    kind: Tensor
    log_prob: Tensor
    noise: tuple[tuple[tuple[Tensor, Tensor | None], ...], ...]

    def take(self, records: Tensor) -> Draw:
        """The draw of some records of the batch alone, in the order of their numbers ``records``."""
        place = torch.full((len(self.choice),), -1, device=records.device)
        place[records] = torch.arange(len(records), device=records.device)
        noise = tuple(
            tuple(
                (place[rows][place[rows] >= 0], None if z is None else z[place[rows] >= 0])
                for rows, z in stage
            )
            for stage in self.noise
        )
        choice, applied, kind, log_prob = (
            part[records] for part in (self.choice, self.applied, self.kind, self.log_prob)
        )
        return Draw(choice, applied, kind, log_prob, noise)


class LearnedPolicy(Augmenter):
    """Stages of augmentation, one after another; in each, every record gets one operation of its own.

    In stage s a record x gets operation ``o ~ softmax(logits[s])``, which its gate lets through with probability
    ``σ(gate_logits[s, o])``, at magnitude ``unit_o · g[s, o]²``, with the operation's typical magnitude as unit, or
    ``unit_o · g² · 2σ(linear(net(x)))`` from a small network on the record. A finite limit L of an operation bounds its
    magnitude m smoothly: ``L (1 − exp(−m/L))``.

    Only what was chosen is computed, once a record, whatever the number of operations. Gradients in the magnitudes pass
    through the records; those in ``logits`` and ``gate_logits`` need the score term, because a choice has no derivative:
    :func:`score_surrogate`, which :class:`ecgmeta.simclr.SimCLR` adds by itself.

    Args:
        leads: number of leads.
        fs: sampling rate in Hz of the records it learns on.
        stages: how many operations in a row; None: 2, or what a ``"chain"`` has.
        ops: names from ``functional.OPERATIONS``, and ``"identity"``; not ``"mixup"`` and ``"cutmix"``, whose labels would have
            to be mixed too, and not ``"real_noise"``, whose noise is yours.
        selector: ``"sampled"`` as above, or ``"chain"``: stage s is ``ops[s]``.
        magnitude: ``"global"``; ``"lead"``, one g a lead; ``"class"``, one g and gate for each of two classes of records, as
            TaskAug (a record without a label gets a class at random); ``"network"``.
        gate: learn how often an operation is applied; else always.
        start: initial magnitudes, in units of the operations' typical ones.
        probability: initial probability of a gate.
        settings: further arguments of operations, by name; tried on a record at the input's rate when they are given.
        mean, std, lead_names, input_fs, generator: as for :class:`~ecgmeta.augment.LearnedWarp`.

    Shapes: (batch, leads, samples) in mV in, the same out.
    """

    def __init__(
        self,
        leads: int = 12,
        fs: float = 100.0,
        generator: torch.Generator | None = None,
        *,
        stages: int | None = None,
        ops: Sequence[str] = DEFAULT_OPERATIONS,
        selector: Literal["sampled", "chain"] = "sampled",
        magnitude: Literal["global", "lead", "class", "network"] = "global",
        gate: bool = True,
        start: float = 0.5,
        probability: float = 0.5,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        mean: float = 0.0,
        std: float = 1.0,
        lead_names: Sequence[str] | None = None,
        input_fs: float | None = None,
    ) -> None:
        super().__init__(leads, fs, input_fs, lead_names, mean, std, generator)
        self.ops, self.selector, self.magnitudes = tuple(ops), selector, magnitude
        self.settings = {name: dict(value) for name, value in (settings or {}).items()}
        own = len(self.ops) if selector == "chain" else 2
        self.stages = own if stages is None else stages
        self._check_arguments(start, probability)
        self._operations = [None if name == IDENTITY else find_operation(name) for name in self.ops]
        self._check_operations()
        shape = (self.stages, len(self.ops))
        widths = {"lead": leads, "class": 2}
        self.g = nn.Parameter(torch.full((*shape, widths.get(magnitude, 1)), math.sqrt(start)))
        if selector == "sampled":
            self.logits = nn.Parameter(torch.zeros(shape))
        if gate:
            kinds = 2 if magnitude == "class" else 1
            level = math.log(probability / (1 - probability))
            self.gate_logits = nn.Parameter(torch.full((*shape, kinds), level))
        if magnitude == "network":
            self.net = OpinionNetwork(leads)
            self.magnitude_layer = nn.Linear(32, math.prod(shape))

    def _check_arguments(self, start: float, probability: float) -> None:
        for field, found, known in (
            ("selector", self.selector, ("sampled", "chain")),
            ("magnitude", self.magnitudes, ("global", "lead", "class", "network")),
        ):
            if found not in known:
                raise InputError("LearnedPolicy", field, repr(found), f"one of {list(known)}")
        if not self.ops or self.stages < 1:
            raise InputError(
                "LearnedPolicy", "ops, stages", f"{self.ops}, {self.stages}", "at least one each"
            )
        for name in self.settings:
            if name not in self.ops:
                raise InputError("LearnedPolicy", "settings", name, f"one of its operations {list(self.ops)}")
        if self.selector == "chain" and self.stages != len(self.ops):
            wanted = f"{len(self.ops)}, one for each of the chain's operations"
            raise InputError("LearnedPolicy", "stages", self.stages, wanted)
        if not 0 < start < math.inf:
            raise InputError(
                "LearnedPolicy", "start", start, "above 0 (no gradient leads away from 0), finite"
            )
        if not 0 < probability < 1:
            raise InputError("LearnedPolicy", "probability", probability, "between 0 and 1")

    def _check_operations(self) -> None:
        for operation in self._operations:
            if operation is None:
                continue
            if operation.leads not in (0, self.leads):
                raise InputError(operation.name, "leads", self.leads, operation.leads)
            if operation.name in COUNTS_SAMPLES and self.input_fs != self.fs:
                raise InputError(
                    operation.name,
                    "rate",
                    f"{self.input_fs:g} Hz, learned at {self.fs:g} Hz",
                    "the same rate: it counts samples (time_warp counts seconds)",
                )
            operation.check_settings(self.input_fs, self.leads, self.settings.get(operation.name, {}))

    @classmethod
    def paper(cls, **settings: Any) -> LearnedPolicy:
        """The paper's learned warp as a policy of one operation: its folding, its initial magnitude 4² = 16, and a network of
        the same layers.

        The paper's network reads the record at its own rate and does not pad its convolutions, as
        :meth:`LearnedWarp.paper() <ecgmeta.augment.LearnedWarp.paper>` has it; a policy's reads it at 25 Hz and pads. With the
        same weights their magnitudes for a record therefore differ somewhat.
        """
        own = {
            "ops": ("paper_warp",),
            "selector": "chain",
            "magnitude": "network",
            "gate": False,
            "start": 16.0,
        }
        return cls(**{**own, **settings})

    @classmethod
    def taskaug(cls, **settings: Any) -> LearnedPolicy:
        """TaskAug (Raghu et al., CHIL 2022) where it starts: two stages of seven operations, magnitudes by class, 250 Hz.

        Its gates start wide open (probability 0.9999999), and its wander at an eighth of ``std``. Here every record has its
        own choice, where TaskAug's released code makes one for the batch, and the choice's gradient is its score, where
        TaskAug's passes through the relaxed weight.
        """
        from ecgmeta.augment.importers import taskaug_start

        return taskaug_start(cls, settings)

    @classmethod
    def _from_pretrained(cls, **kwargs: Any) -> Any:
        if kwargs.get("selector") == "chain":  # whose stages earlier versions saved as 2, and did not look at
            kwargs.pop("stages", None)
        return super()._from_pretrained(**kwargs)

    def at(self, fs: float, leads: Sequence[str] | None = None) -> LearnedPolicy:
        converted = super().at(fs, leads)
        converted._check_operations()
        return converted

    @torch.no_grad()
    def draw(self, x: Tensor, generator: torch.Generator | None = None, labels: Tensor | None = None) -> Draw:
        """Choices, gates and noise for x.

        Args:
            labels: (batch,) of 0 and 1, for magnitudes by class; None: at random.

        Raises:
            InputError: other labels, or another number of them.
        """
        generator, device, batch = generator or self.generator, x.device, x.shape[0]

        def uniform(*shape: int) -> Tensor:
            return torch.rand(batch, *shape, generator=generator, device=device)

        if self.selector == "chain":
            choice = torch.arange(self.stages, device=device).expand(batch, -1)
        else:  # Gumbel's maximum has the law softmax(logits)
            gumbel = -torch.log(-torch.log(uniform(*self.logits.shape).clamp(1e-20, 1 - 1e-7)))
            choice = (self.logits.to(gumbel.dtype) + gumbel).argmax(-1)
        kind = (uniform() < 0.5).long() if labels is None else _kinds(labels, batch).to(device)
        if self.magnitudes != "class":
            kind = torch.zeros_like(kind)
        applied = torch.ones_like(choice, dtype=torch.bool)
        if hasattr(self, "gate_logits"):
            applied = uniform(self.stages) < torch.sigmoid(self._gates(choice, kind))
        noise = tuple(
            tuple(
                self._noise(x, number, (applied[:, stage] & (choice[:, stage] == number)), generator)
                for number in range(len(self.ops))
            )
            for stage in range(self.stages)
        )
        return Draw(choice, applied, kind, self._log_prob(choice, applied, kind), noise)

    def check_noise(self, x: Tensor, noise: Any) -> None:
        if not isinstance(noise, Draw):
            raise InputError("LearnedPolicy", "noise", type(noise).__name__, "what draw gives")
        found = (len(noise.choice), len(noise.noise), len(noise.noise[0]))
        wanted = (len(x), self.stages, len(self.ops))
        if found != wanted:
            raise InputError("LearnedPolicy", "records, stages, operations of noise", found, wanted)
        for stage in noise.noise:
            for operation, (_, z) in zip(self._operations, stage, strict=True):
                if operation is None or operation.noise is None or z is None:
                    continue
                own = (len(z), *operation.noise.shape(x)[1:])
                if z.shape != own:
                    raise InputError(operation.name, "shape of noise", tuple(z.shape), own)

    def _noise(
        self, x: Tensor, number: int, mine: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        rows, operation = mine.nonzero().flatten(), self._operations[number]
        if operation is None:
            return rows[:0], None
        return rows, operation.draw(x[:1].expand(len(rows), -1, -1), generator)

    def log_prob(self, draw: Draw) -> Tensor:
        """(batch,): of the choices and gates of ``draw`` under the present φ."""
        return self._log_prob(draw.choice, draw.applied, draw.kind)

    def _log_prob(self, choice: Tensor, applied: Tensor, kind: Tensor) -> Tensor:
        total = torch.zeros(len(choice), dtype=self.g.dtype, device=choice.device)
        if self.selector == "sampled":
            chances = F.log_softmax(self.logits, dim=-1).expand(len(choice), -1, -1)
            total = total + chances.gather(-1, choice.unsqueeze(-1)).sum((1, 2))
        if hasattr(self, "gate_logits"):
            gates = self._gates(choice, kind)
            total = total + torch.where(applied, F.logsigmoid(gates), F.logsigmoid(-gates)).sum(1)
        return total

    def _gates(self, choice: Tensor, kind: Tensor) -> Tensor:
        """(batch, stages): the logit of each record's gates."""
        stage = torch.arange(self.stages, device=choice.device)
        return self.gate_logits[stage, choice, kind.unsqueeze(1)]

    def magnitude(self, x: Tensor, kind: Tensor) -> Tensor:
        """(batch, stages, operations, leads or 1): what each record would get, in each operation's unit."""
        g = self.g[..., kind].movedim(-1, 0).unsqueeze(-1) if self.magnitudes == "class" else self.g
        magnitude = g.square().expand(len(x), -1, -1, -1)
        if self.magnitudes == "network":
            # In the parameters' precision, under autocast too; see LearnedWarp.
            with torch.autocast(x.device.type, enabled=False):
                seen = self.normalised(self.resample(x.to(g.dtype), NETWORK_HZ))
                opinion = 2 * torch.sigmoid(self.magnitude_layer(self.net(seen)))
            magnitude = magnitude * opinion.unflatten(1, self.g.shape[:2]).unsqueeze(-1)
        return torch.stack(
            [_in_unit(magnitude[:, :, i], operation) for i, operation in enumerate(self._operations)], dim=2
        )

    def augment(self, x: Tensor, noise: Draw) -> Tensor:
        check_finite(type(self).__name__, x)
        magnitude = self.magnitude(x, noise.kind)
        for stage, noises in enumerate(noise.noise):
            x = self._stage(x, magnitude[:, stage], noises)
        return x

    def _stage(
        self, x: Tensor, magnitude: Tensor, noises: tuple[tuple[Tensor, Tensor | None], ...]
    ) -> Tensor:
        parts, places = [], []
        for number, (rows, noise) in enumerate(noises):
            operation = self._operations[number]
            if operation is None or noise is None or not len(rows):
                continue
            m = magnitude[rows, number]
            m = m if operation.per_lead else m[:, :1]
            settings = self.settings.get(operation.name, {})
            parts.append(
                operation.apply(x[rows], m.unsqueeze(-1).to(x.dtype), noise, self.input_fs, **settings)
            )
            places.append(rows)
        if not parts:
            return x
        # One copy back, whatever the number of operations; the rest of the records come along.
        taken = torch.cat(places)
        rest = torch.ones(len(x), dtype=torch.bool, device=x.device)
        rest[taken] = False
        untouched = rest.nonzero().flatten()
        return torch.cat([*parts, x[untouched]])[torch.cat([taken, untouched]).argsort()]

    @torch.no_grad()
    def _chances(self) -> Tensor:
        """(stages, operations): how often each is chosen."""
        return (
            self.logits.softmax(-1)
            if self.selector == "sampled"
            else torch.eye(self.stages, device=self.g.device)
        )

    @torch.no_grad()
    def trace(self) -> dict[str, float]:
        """For each operation, over stages: the chance that it happens at all, and its g² where it does."""
        gates = torch.sigmoid(self.gate_logits).mean(-1) if hasattr(self, "gate_logits") else 1.0
        happens = self._chances() * gates
        g = self.g.square().mean(-1)
        numbers = {}
        for number, name in enumerate(self.ops):
            numbers[f"chance of {name}"] = float(1 - (1 - happens[:, number]).prod())
            if name != IDENTITY:
                numbers[f"g² of {name}"] = float((g * happens)[:, number].sum() / happens[:, number].sum())
        return numbers

    @torch.no_grad()
    def learned(self, x: Tensor) -> list[Learned]:
        with evaluated(self):
            kinds = range(2 if self.magnitudes == "class" else 1)
            records = x if self.magnitudes == "network" else x[:1]  # else no record's is another's
            magnitudes = torch.cat(
                [self.magnitude(records, torch.full((len(records),), kind)) for kind in kinds]
            )
        chances = self._chances()
        gates = torch.sigmoid(self.gate_logits) if hasattr(self, "gate_logits") else torch.ones_like(self.g)
        found = []
        for stage in range(self.stages):
            for number, name in enumerate(self.ops):
                if chances[stage, number] == 0:
                    continue
                group, operation = f"stage {stage + 1}", self._operations[number]
                if self.selector == "sampled":  # a chain has no choice
                    found.append(Learned(group, f"{name}, chosen", "share", chances[stage, number].view(1)))
                if operation is None:
                    continue
                if hasattr(self, "gate_logits"):
                    found.append(Learned(group, f"{name}, applied", "share", gates[stage, number].flatten()))
                applied = magnitudes[:, stage, number]
                applied = applied if operation.per_lead else applied[:, :1]
                found.append(Learned(group, f"{name}, magnitude", operation.unit, applied.flatten()))
        return found

    def __repr__(self) -> str:
        return (
            f"LearnedPolicy(leads={self.leads}, fs={self.fs}, stages={self.stages}, ops={list(self.ops)}, "
            f"selector={self.selector!r}, magnitude={self.magnitudes!r})"
        )


def score_surrogate(losses: Tensor, log_prob: Tensor, drawn: Tensor, effects: Tensor | None = None) -> Tensor:
    """The mean of ``losses``, with the derivative that random choices give it: a scalar.

    Under choices c ~ p_φ the expected mean L of losses has the derivative ``E[∂L + mean_i (eᵢ − bᵢ) ∂log p_φ(cᵢ)]``, with
    eᵢ everything in N·L that record i's choices change, and any bᵢ that does not depend on cᵢ; here the mean of the other
    records' e. So

        surrogate = L + mean_i (eᵢ − bᵢ) · (log p_φ(cᵢ) − log p(cᵢ) when drawn),

    whose second derivatives (θ, then φ) are those of the expectation, too.

    Args:
        losses: (batch,).
        log_prob: (batch,), of the choices under the present φ.
        drawn: (batch,), under the φ that drew them; the score term is then 0 in value.
        effects: (batch,), e; None: the losses, where no record's choices change another's loss.
    """
    effects = losses if effects is None else effects
    others = (effects.sum() - effects) / max(len(effects) - 1, 1)
    return losses.mean() + ((effects - others) * (log_prob - drawn).to(losses.dtype)).mean()


def _kinds(labels: Tensor, batch: int) -> Tensor:
    labels = torch.as_tensor(labels)
    if labels.shape != (batch,):
        raise InputError("LearnedPolicy", "shape of labels", tuple(labels.shape), f"({batch},), one a record")
    if not concretely(lambda: bool(((labels == 0) | (labels == 1)).all())):
        raise InputError("LearnedPolicy", "labels", sorted(set(labels.tolist()))[:5], "0 or 1 each")
    return labels.long()


def find_operation(name: str, where: str = "LearnedPolicy", field: str = "ops") -> Operation:
    """An operation that a policy can take, but for :data:`IDENTITY`, which is none.

    Raises:
        InputError: of ``where`` and ``field``: there is none of that name, or it is not one of a single record's own noise.
    """
    known = {**OPERATIONS, **TASKAUG_OPERATIONS}
    if name not in known:
        raise InputError(where, field, name, f"one of {[IDENTITY, *known]}")
    if known[name].noise is None:
        raise InputError(where, field, name, "an operation that draws its own noise")
    if name in MIXING:
        reason = "it mixes records of the batch, whose labels, and pairs of views, would stay as they are"
        raise InputError(where, field, f"{name} ({reason})", "an operation on one record")
    return known[name]


def _in_unit(share: Tensor, operation: Operation | None) -> Tensor:
    """A magnitude, (..., leads or 1), from units of the typical one; the leads' mean where all of them share one."""
    if operation is None:
        return share
    magnitude = operation.typical * share
    if operation.limit < math.inf:
        magnitude = -operation.limit * torch.expm1(-magnitude / operation.limit)
    return magnitude if operation.per_lead else magnitude.mean(-1, keepdim=True).expand_as(magnitude)

"""Checkpoints of the authors' released code as augmenters of this package.

The layouts are those of their state dicts: ``teacher_sd`` of *Meta-Learning to Improve Pre-Training* (NeurIPS 2021), and
``aug_sd`` of *TaskAug* (CHIL 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ecgmeta.augment.functional import OPERATIONS
from ecgmeta.augment.learned import Augmenter, LearnedWarp
from ecgmeta.augment.policy import IDENTITY, LearnedPolicy
from ecgmeta.augment.taskaug import TASKAUG_OPERATIONS
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.pretrained import check_weights

TASKAUG = (
    "paper_warp",
    "taskaug_wander",
    "white_noise",
    "taskaug_crop",
    "time_shift",
    "taskaug_scale",
    IDENTITY,
)
"""TaskAug's operations in its order."""
PAPER_HZ = 100.0
TASKAUG_HZ = 250.0
TASKAUG_STARTS = (1.0, 0.0, 0.0, None, 0.5, 0.0, None)
"""Its initial magnitudes, before the functions that :func:`_share` undoes; None: not learned."""
OPEN = 0.9999999

Policy = TypeVar("Policy", bound=LearnedPolicy)


def load_checkpoint(
    file: str | Path,
    *,
    fs: float | None = None,
    leads: int | None = None,
    mean: float = 0.0,
    std: float = 1.0,
) -> Augmenter:
    """The augmenter in a checkpoint file of either released code, told apart by its keys.

    Only tensors and plain containers are unpickled (``weights_only=True``); nothing in the file is executed.

    Args:
        file: written by ``torch.save``.
        fs, leads, mean, std: of the records it was learned on, which no checkpoint tells; see :func:`import_paper_warp` and
            :func:`import_taskaug`. None: as in the released code.

    Raises:
        InputError: no such file, not a checkpoint, neither layout, or one that was not learned on such records.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a missing file, another format, or an object that would have to be executed
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            file, "checkpoint", reason, "a file of torch.save with tensors in plain containers"
        ) from error
    if isinstance(content, Mapping):
        if "teacher_sd" in content:
            state = content["teacher_sd"]
            return import_paper_warp(state, PAPER_HZ if fs is None else fs, leads=leads, mean=mean, std=std)
        if "aug_sd" in content:
            state, leads = content["aug_sd"], 12 if leads is None else leads
            return import_taskaug(state, leads, TASKAUG_HZ if fs is None else fs, mean=mean, std=std)
    found = list(content) if isinstance(content, Mapping) else type(content).__name__
    raise InputError(file, "checkpoint", found, "teacher_sd (the paper) or aug_sd (TaskAug)")


def import_paper_warp(
    state: Mapping[str, Tensor],
    fs: float = PAPER_HZ,
    *,
    leads: int | None = None,
    mean: float = 0.0,
    std: float = 1.0,
) -> LearnedWarp:
    """A :class:`LearnedWarp` from ``teacher_sd``: ``flow_mag``, ``net.*``, ``flow_mag_layer.*``, without its sampling grids.

    Args:
        state: the state dict.
        fs: rate of the records it was learned on, in Hz (1,024 samples at 100 Hz in the released code).
        leads: what they had, to compare with the first layer; None: what the first layer has.
        mean, std: in mV; it was learned on ``(record − mean)/std``.

    Raises:
        InputError: naming the tensor that is missing, unknown or of another shape, or the argument.
    """
    renamed = {
        key.replace("flow_mag_layer.", "magnitude_layer.").replace("flow_mag", "global_magnitude"): value
        for key, value in state.items()
        if not key.endswith("transformer.grid")
    }
    first = renamed.get("net.0.weight")
    if first is None or first.ndim != 3:
        raise InputError("teacher_sd", "net.0.weight", "nothing", "(32, leads, 15)")
    if leads is not None and leads != first.shape[1]:
        shape = f"shape {tuple(first.shape)}"
        raise InputError("teacher_sd", "net.0.weight", shape, f"shape {(32, leads, 15)} of {leads} leads")
    warp = LearnedWarp.paper(leads=first.shape[1], fs=fs, mean=mean, std=std)
    return _filled(warp, renamed, "teacher_sd")


def import_taskaug(
    state: Mapping[str, Tensor],
    leads: int = 12,
    fs: float = TASKAUG_HZ,
    *,
    mean: float = 0.0,
    std: float = 1.0,
) -> LearnedPolicy:
    """A :class:`LearnedPolicy` from ``aug_sd``: ``sub_policies.0.stages.S._weights``, ``.operations.N.magnitude|probability``.

    Magnitudes and probabilities that were not learned have the values of the released code.

    Args:
        state: the state dict.
        leads: of the records, which the state dict does not tell.
        fs: rate of the records it was learned on, in Hz: displacements are counted in samples there.
        mean, std: in mV; it was learned on ``(record − mean)/std``, where a wander of 1 is ``std``. Its crop sets to 0, the
            mean there, so only a mean of 0 can be kept.

    Raises:
        InputError: naming the tensor that is missing, unknown or of another shape, or the argument.
    """
    if mean != 0:
        raise InputError("aug_sd", "mean", mean, "0: its crop and its scale are about 0 mV here")
    prefix = "sub_policies.0.stages."
    stages = sum(key.startswith(prefix) and key.endswith("._weights") for key in state)
    if not stages:
        raise InputError("aug_sd", f"{prefix}0._weights", "nothing", f"({len(TASKAUG)},)")
    policy = taskaug_start(LearnedPolicy, {"leads": leads, "fs": fs, "stages": stages, "std": std})
    with torch.no_grad():
        for key, value in state.items():
            if not key.endswith("transformer.grid"):
                _set(policy, key, prefix, value)
    return _filled(policy, policy.state_dict(), "aug_sd")


def taskaug_start(cls: type[Policy], settings: Mapping[str, Any]) -> Policy:
    """TaskAug before it learns. See :meth:`LearnedPolicy.taskaug`."""
    own = {"ops": TASKAUG, "magnitude": "class", "fs": TASKAUG_HZ, "probability": OPEN, "start": 1.0}
    own |= {"settings": {"paper_warp": {"steps": 7, "window": 51}}}
    policy = cls(**{**own, **settings})
    with torch.no_grad():
        for number, raw in enumerate(TASKAUG_STARTS):
            if raw is not None:
                policy.g[:, number] = _share(number, torch.tensor(raw), policy).sqrt()
    return policy


def _set(policy: LearnedPolicy, key: str, prefix: str, value: Tensor) -> None:
    parts = key.removeprefix(prefix).split(".")
    stage = int(parts[0]) if key.startswith(prefix) and parts[0].isdigit() else -1
    number = int(parts[2]) if len(parts) == 4 and parts[1] == "operations" and parts[2].isdigit() else -1
    if 0 <= stage < policy.stages and parts[1:] == ["_weights"]:
        target, new = policy.logits[stage], value
    elif stage < 0 or not 0 <= number < len(TASKAUG) or parts[3] not in ("magnitude", "probability"):
        raise InputError("aug_sd", key, "an unknown tensor", "TaskAug's stages of seven operations")
    elif parts[3] == "probability":
        target, new = policy.gate_logits[stage, number], value
    else:
        target, new = policy.g[stage, number], _share(number, value, policy).sqrt()
    if new.shape != target.shape:
        raise InputError("aug_sd", key, f"shape {tuple(new.shape)}", f"shape {tuple(target.shape)}")
    target.copy_(new)


def _share(number: int, raw: Tensor, policy: LearnedPolicy) -> Tensor:
    """TaskAug's raw parameter as a share of the operation's typical magnitude, which is this package's g²."""
    name = TASKAUG[number]
    if name == "paper_warp":
        magnitude = raw.square()
    elif name == "time_shift":
        magnitude = 100 * raw.square() / policy.fs
    elif name == "taskaug_scale":
        magnitude = torch.sigmoid(raw)
    else:
        magnitude = 0.25 * torch.sigmoid(raw)
    if name == "taskaug_wander":  # the only one that adds mV; its records were normalised
        magnitude = policy.std * magnitude
    return magnitude / {**OPERATIONS, **TASKAUG_OPERATIONS}[name].typical


Model = TypeVar("Model", bound=Augmenter)


def _filled(model: Model, state: Mapping[str, Tensor], where: str) -> Model:
    check_weights(model, {name: tuple(value.shape) for name, value in state.items()}, where)
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(where, name, "a number that is not finite", "finite weights")
    model.load_state_dict(dict(state))
    model.frozen_statistics = True
    return model.train()

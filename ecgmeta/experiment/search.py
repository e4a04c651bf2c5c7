"""Arms that keep the best of several runs: random search over what the meta arm learns, at its compute, which says whether
gradients were needed; and the best of several runs of meta."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import torch

from ecgmeta.bilevel.implicit_head import leave_one_out, standardise
from ecgmeta.encoders import load_encoder
from ecgmeta.experiment.batches import patients_of
from ecgmeta.experiment.cohort import Cohort
from ecgmeta.experiment.config import Experiment, Search
from ecgmeta.experiment.pretrain import metaft, note_data, pretrain
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.files import copy_folder
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import say
from ecgmeta.runtime.ranks import Ranks

LARGEST = 2000  # records that a score is of: it takes a matrix of as many rows and columns


def search(run: Run, cohort: Cohort, ranks: Ranks, progress: Progress) -> None:
    """Pre-train several encoders, and keep the one from whose features the MetaFT labels, those that guide the meta arm, are
    predicted best.

    ``search``: ``search.trials`` of them, each under an augmenter drawn around the configured start and not learned; together
    they take ``search.compute`` times the steps of one pre-training, which is about what a meta run costs. ``meta_best``:
    ``search.runs`` runs of meta, and ``search.drawn`` whole runs under drawn augmenters. Each is a run of its own in
    ``trials/``, and is gone on with like any other.

    Raises:
        InputError, Stopped, Diverged: see :func:`~ecgmeta.experiment.pretrain.pretrain`.
    """
    ranks.wait()
    if run.pretrained:
        return
    trials = []
    for number, config in enumerate(_candidates(run, len(cohort.pretrain)), start=1):
        folder = run.folder / "trials" / str(number)
        trials.append(Run.create(folder, config) if ranks.leads else Run(folder, config))
        pretrain(trials[-1], cohort, ranks, progress)
    if ranks.leads:
        note_data(run, cohort)
        scores = [_score(other, cohort) for other in trials]
        best = max(range(len(scores)), key=scores.__getitem__)
        if scores[best] == -math.inf:
            say(f"warning: {run.arm}: no trial's features tell one record from another; the first is kept")
        else:
            r2 = f"R² of the MetaFT labels {scores[best]:.3f}"
            say(f"{run.arm}: trial {best + 1} of {len(scores)} ({trials[best].arm}) is the best: {r2}")
        signal = {name: trials[best].info[name] for name in ("signal",) if name in trials[best].info}
        run.note(search={"scores": scores, "best": best + 1, "arm": trials[best].arm}, **signal)
        _keep(trials[best], run)
    ranks.wait()


def say_compute(config: Experiment) -> None:
    """Say so where a search stands beside several runs of meta and takes less time than they do."""
    wanted = round(Search().compute * config.search.runs + config.search.drawn, 2)
    if {"meta_best", "search"} <= {config.pretrain.arm, *config.compare} and config.search.compute < wanted:
        say(
            f"search takes {config.search.compute:g} plain pre-trainings, what meta_best chooses among about "
            f"{wanted:g} or more: search.compute={wanted:g} compares them at the same"
        )


def _candidates(run: Run, recordings: int) -> list[Experiment]:
    config = run.config
    if run.arm == "search":
        return [trial(config, number, recordings) for number in range(1, config.search.trials + 1)]
    repeats = (replace(config.pretrain, arm="meta", repeat=number) for number in range(config.search.runs))
    whole = replace(config, search=replace(config.search, compute=1.0, trials=1))
    drawn = [trial(whole, number, recordings) for number in range(1, config.search.drawn + 1)]
    return [*(replace(config, pretrain=settings, compare=[]) for settings in repeats), *drawn]


def trial(config: Experiment, number: int, recordings: int) -> Experiment:
    """The configuration of one trial: its share of the steps, and the ``number``-th draw of the augmenter."""
    settings = config.pretrain
    steps = math.ceil(settings.epochs * (recordings // min(settings.batch_size, recordings)))
    steps = min(steps, settings.max_steps or steps)
    share = max(1, round(steps * config.search.compute / config.search.trials))
    own = replace(
        settings, arm="simclr_warp", max_steps=share, epochs=settings.epochs * config.search.compute
    )
    return replace(config, pretrain=own, augment=replace(config.augment, draw=number), compare=[])


def _score(run: Run, cohort: Cohort) -> float:
    """R² of a ridge head for the labels of all MetaFT records, each patient left out of the fit; −∞ where features say nothing.

    In ``examples/studies`` (``ecg_remedies``) this told good encoders from bad ones better the lighter the penalty was.
    """
    from ecgmeta.data import concat
    from ecgmeta.evaluation.predictor import run_batches

    encoder = load_encoder(run.encoder).eval()
    data = concat(metaft(run.config, cohort))
    features, labels = run_batches(encoder, data, 256, None, "features of MetaFT")
    patients = patients_of(data)
    every = slice(None, None, -(-len(features) // LARGEST))
    x, y = torch.from_numpy(features[every]).double(), torch.from_numpy(labels[every]).double()
    y = y[:, y.min(0).values < y.max(0).values]
    if not float((x - x.mean(0)).square().sum()) > 0:  # NaN, or the same for every record
        return -math.inf
    groups = None if patients is None else patients[every]
    found = 1 - float(leave_one_out(x, standardise(y), run.config.search.penalty, groups))
    return found if math.isfinite(found) else -math.inf


def _keep(best: Run, run: Run) -> None:
    """What the best trial left, as this run's own; the encoder last, which says that pre-training has ended."""
    shutil.copyfile(best.metrics, run.metrics)
    for source, target in (
        (best.augmenter_before, run.augmenter_before),
        (best.augmenter, run.augmenter),
        (best.encoder, run.encoder),
    ):
        copy_folder(source, target)

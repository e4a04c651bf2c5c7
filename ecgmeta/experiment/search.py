"""Arms that keep the best of several runs: random search over what the meta arm learns, at its compute, which says whether
gradients were needed; and the best of several runs of meta."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

from ecgmeta.encoders import load_encoder
from ecgmeta.experiment.cohort import Cohort
from ecgmeta.experiment.config import Experiment
from ecgmeta.experiment.pretrain import metaft, note_data, pretrain
from ecgmeta.experiment.run import Run
from ecgmeta.runtime.progress import Report as Progress
from ecgmeta.runtime.progress import say
from ecgmeta.runtime.ranks import Ranks


def search(run: Run, cohort: Cohort, ranks: Ranks, progress: Progress) -> None:
    """Pre-train several encoders, and keep the one whose linear probe does best on the MetaFT validation recordings, the labels
    that guide the meta arm.

    ``search``: ``search.trials`` of them, each under an augmenter drawn around the configured start and not learned; together
    they take ``search.compute`` times the steps of one pre-training, which is about what a meta run costs. ``meta_best``:
    ``search.runs`` runs of meta. Each is a run of its own in ``trials/``, and is gone on with like any other.

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
        say(f"{run.arm}: trial {best + 1} of {len(scores)} is the best on validation: {scores[best]:.3f}")
        signal = {name: trials[best].info[name] for name in ("signal",) if name in trials[best].info}
        run.note(search={"scores": scores, "best": best + 1}, **signal)
        _keep(trials[best], run)
    ranks.wait()


def _candidates(run: Run, recordings: int) -> list[Experiment]:
    config = run.config
    if run.arm == "search":
        return [trial(config, number, recordings) for number in range(1, config.search.trials + 1)]
    repeats = (replace(config.pretrain, arm="meta", repeat=number) for number in range(config.search.runs))
    return [replace(config, pretrain=settings, compare=[]) for settings in repeats]


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
    """Validation AUROC of a linear probe; minus its loss where no label has both classes there."""
    from ecgmeta.evaluation import linear_probe

    train, validation = metaft(run.config, cohort)
    chosen = linear_probe(load_encoder(run.encoder), train, validation).chosen
    auroc = chosen["val_macro_auroc"]
    return float(-chosen["val_loss"] if auroc is None else auroc)


def _keep(best: Run, run: Run) -> None:
    """What the best trial left, as this run's own; the encoder last, which says that pre-training has ended."""
    shutil.copyfile(best.metrics, run.metrics)
    for source, target in (
        (best.augmenter_before, run.augmenter_before),
        (best.augmenter, run.augmenter),
        (best.encoder, run.encoder),
    ):
        aside = Path(f"{target}.part")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)

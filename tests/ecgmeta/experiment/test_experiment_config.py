"""Configurations: ranges, the short form of labels, and every committed file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecgmeta.encoders import list_encoders
from ecgmeta.experiment.config import ENCODERS, WARP_SAMPLES, Experiment, check, read
from ecgmeta.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = sorted(
    [*(ROOT / "configs" / "ecg").rglob("*.yaml"), ROOT / "ecgmeta" / "experiment" / "demo.yaml"]
)


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.name)
def test_committed_configurations_load_and_say_the_command(file: Path) -> None:
    assert isinstance(read(file, []), Experiment)
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    command = "ecgmeta demo" if file.name == "demo.yaml" else f"--config {file.relative_to(ROOT)}"
    assert command in first


def test_there_are_committed_configurations() -> None:
    assert {"demo.yaml", "ptbxl_meta.yaml", "real_small.yaml"} <= {file.name for file in COMMITTED}


def test_the_constants_are_those_of_the_rooms_they_stand_for() -> None:
    from ecgmeta.augment.learned import SHORTEST
    from ecgmeta.augment.policy import DEFAULT_OPERATIONS

    assert tuple(Experiment().augment.policy.ops) == DEFAULT_OPERATIONS
    assert sorted(ENCODERS) == list_encoders()
    assert WARP_SAMPLES == SHORTEST


def test_the_chain_has_what_the_studies_learn_and_their_settings_of_phi() -> None:
    from ecgmeta.augment import LearnedPolicy
    from ecgmeta.encoders import create_encoder
    from ecgmeta.experiment.model import build_augmenter
    from examples.studies.ecg_arms import policy_of
    from examples.studies.study import load

    settings = load("ecg_remedies").plan.settings
    start, meta = settings.situations["shifted"].start, settings.meta
    config = read(ROOT / "configs" / "ecg" / "chain.yaml", [])
    own = config.meta
    assert (own.period, own.penalty, own.batch_size) == (meta.period, meta.penalty, meta.labels)
    assert (own.magnitude_lr, own.magnitude_limit**2) == (meta.lr, meta.highest)
    assert own.labels == settings.sizes.metaft
    policy = build_augmenter(config, create_encoder("resnet18", leads=4, width=8))
    studied = policy_of(start, leads=4)
    assert isinstance(policy, LearnedPolicy)
    assert (policy.ops, policy.selector) == (studied.ops, "chain")
    assert [name for name, _ in policy.named_parameters()] == ["g"]
    assert policy.g[..., 0].diagonal().tolist() == pytest.approx(studied.g[..., 0].diagonal().tolist())
    policy = build_augmenter(
        read(None, ["augment.augmenter=policy"]), create_encoder("resnet18", leads=4, width=8)
    )
    assert [name for name, _ in policy.named_parameters()] == ["g", "logits", "gate_logits"]


def test_the_defaults_are_in_range() -> None:
    check(Experiment())


@pytest.mark.parametrize(
    "override",
    [
        *("pretrain.arm=metta", "compare=[simcrl]", "baselines=[nothing]", "evaluate.reference=simlcr"),
        *(
            "encoder.name=resnet19",
            "encoder.norm=layer",
            "finetune.protocols=[half]",
            "through=end",
        ),
        *("log.wandb_mode=sometimes", "meta.magnitude_limit=-1", "meta.magnitude_limit=0.5"),
        *("meta.head=bald", "meta.penalty=0"),
        *("meta.inverse=magic", "meta.on_failure=ignore", "data.label_policy=x", "data.windows=some"),
        *("data.on_error=ignore", "accelerator=abacus"),
        *("data.fs=0", "data.fs=.inf", "pretrain.epochs=.inf", "pretrain.epochs=0", "pretrain.lr=.nan"),
        *("pretrain.lr=-1e-3", "finetune.lr=-1", "meta.period=0", "meta.eps=0", "data.synthetic.n=0"),
        *(
            "pretrain.max_steps=-1",
            "meta.warmup_epochs=-1",
            "meta.unroll=-1",
            "meta.terms=-1",
            "meta.damping=-1",
        ),
        *("augment.noise=-0.1", "augment.noise=.nan", "finetune.patience=-1", "evaluate.bootstrap=-1"),
        *("pretrain.batch_size=1", "meta.hyper_batch_size=1", "augment.crop=1.5", "data.test_fraction=1"),
        *(
            "finetune.labels=[]",
            "labels=4",
            "data.train_folds=[1]",
            "data.test_folds=[10]",
            "data.duration=0.5",
        ),
        *("augment.augmenter=wrap", "augment.policy.magnitude=class", "augment.policy.start=0"),
        *("augment.policy.ops=[]", "augment.policy.stages=0", "augment.policy.probability=1"),
        "augment.policy.selector=all",
    ],
)
def test_values_out_of_range_are_named(override: str) -> None:
    with pytest.raises(InputError) as caught:
        read(None, [override])
    key = "finetune.labels" if override.startswith("labels") else override.partition("=")[0]
    assert key in str(caught.value)
    assert "found" in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["encoder.norm=group", "encoder.width=12"],
        ["data.train_folds=[1,2]", "data.test_folds=[2]"],
        ["data.duration=2", "pretrain.arm=simclr", "compare=[simclr_warp]", "augment.augmenter=paper_warp"],
        ["augment.augmenter=policy", "augment.policy.ops=[gain,wobble]"],
        ["augment.augmenter=policy", "augment.policy.ops=[gain,mixup]"],
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str]) -> None:
    with pytest.raises(InputError):
        read(None, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["encoder.norm=group", "encoder.width=8"],
        ["encoder.name=mypackage.module:Class"],
        ["data.train_folds=[1,2]", "data.test_folds=[3]"],
        ["data.duration=2", "pretrain.arm=simclr"],
        ["meta.warmup_epochs=0", "meta.unroll=0", "meta.terms=0", "finetune.patience=0"],
    ],
)
def test_the_ends_of_the_ranges_are_allowed(overrides: list[str]) -> None:
    assert isinstance(read(None, overrides), Experiment)


@pytest.mark.parametrize("text", ["labels=100,250", "labels=[100,250]", "finetune.labels=[100,250]"])
def test_labels_have_a_short_form(text: str) -> None:
    assert read(None, [text]).finetune.labels == [100, 250]

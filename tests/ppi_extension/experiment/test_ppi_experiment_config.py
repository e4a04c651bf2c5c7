"""Configurations: every committed one is whole, and what is wrong is said with the key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ecgmeta.runtime.errors import InputError
from ppi_extension.experiment.config import ARMS, FROM_META, RULES, SEARCH, VARIANTS, cotrains, of_arm, read

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = sorted((ROOT / "configs" / "ppi").glob("*.yaml"))
DEMO = ROOT / "ppi_extension" / "experiment" / "demo.yaml"


def test_there_are_configurations() -> None:
    assert {file.name for file in COMMITTED} >= {"paper.yaml", "ohmnet_meta.yaml", "ohmnet_folds.yaml"}


@pytest.mark.parametrize("file", [*COMMITTED, DEMO], ids=lambda file: file.name)
def test_a_committed_configuration_is_valid_and_says_how_it_is_run(file: Path) -> None:
    read(file, [])
    first = file.read_text(encoding="utf-8").splitlines()[0]
    command = (
        "ppi-extension demo" if file == DEMO else f"ppi-extension pretrain --config configs/ppi/{file.name}"
    )
    assert first.startswith("# ")
    assert command in first


def test_the_papers_constants() -> None:
    config = read(ROOT / "configs" / "ppi" / "paper.yaml", [])
    assert (config.data.test_graphs, config.data.test_graphs_seen, config.data.seed) == (["9606"], 0.5, 42)
    assert (config.encoder.width, config.encoder.layers, config.encoder.dropout) == (300, 5, 0.2)
    assert (config.pretrain.epochs, config.pretrain.batch_size, config.pretrain.lr) == (100, 32, 1e-4)
    assert config.pretrain.legacy_center_index
    meta = config.meta
    assert (meta.period, meta.unroll, meta.inverse, meta.terms, meta.warmup_epochs) == (
        10,
        1,
        "neumann",
        1,
        1,
    )
    assert (meta.lr, meta.head_lr, meta.step_size, meta.scaling, meta.transform) == (
        1,
        1e-4,
        1e-4,
        "none",
        "sigmoid",
    )
    assert (config.finetune.epochs, config.finetune.dropout) == (50, 0.5)
    assert (config.finetune.lr, config.finetune.full_lr) == (1e-4, 1e-5)


def test_on_real_tissues_there_are_all_arms_and_baselines_have_the_compute_of_meta() -> None:
    config = read(ROOT / "configs" / "ppi" / "ohmnet_meta.yaml", [])
    assert set(config.arms) == set(ARMS) - {"oracle"}  # nobody knows which tasks are useful there
    assert config.seeds == 10
    assert len(config.pretrain.lengths) >= 4
    # At a φ step every second step a run of meta took 1.9 to 2.5 times as long as one of uniform weights.
    assert config.pretrain.plain_factor >= 2.5
    assert config.meta.period >= 2


def test_folds_of_real_tissues_are_those_of_full_access_but_for_the_tasks_held_out() -> None:
    folds, full = (read(ROOT / "configs" / "ppi" / f"ohmnet_{name}.yaml", []) for name in ("folds", "meta"))
    assert folds.meta.folds == folds.seeds == 10
    assert {"supervised", "meta", "cosine", "cotrain"} < set(folds.arms)
    assert "ceiling" not in folds.arms  # which would be trained on the tasks that are scored
    assert replace(folds, arms=full.arms, meta=replace(folds.meta, folds=0)) == full


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("meta.perod=3", "the nearest is 'meta.period'"),
        ("arms=[supervized]", "one of"),
        ("arms=[]", "one or more"),
        ("arms=[supervised,supervised]", "each once"),
        ("arms=[supervised,permuted]", "meta, whose weights it takes"),
        ("pretrain.lengths=[0.5]", "the last one 1.0"),
        ("pretrain.lengths=[1.0,0.5]", "ascending"),
        ("data.test_fraction=0.9", "below 1"),
        ("data.test_graphs_seen=0.5", "of which data.test_graphs_seen is a share"),
        ("data.test_graphs_seen=1", "below 1"),
        ("meta.share=1.5", "at most 1"),
        ("meta.curvature=0", "above 0"),
        ("meta.curvature=1.5", "at most 1"),
        ("meta.curvature=0.03", "at least 1/32"),
        ("meta.folds=1", "2 or more"),
        ("meta.beta2=1", "below 1"),
        ("finetune.protocols=[]", "one or more"),
        ("meta.lr=0", "above 0"),
        ("meta.start=similar", "one of"),
        ("meta.anchor=1", "below 1"),
        ("pretrain.cotrain=-1", "0 or more"),
        ("search.trials=0", "above 0"),
        ("meta.clip=-1", "0 or more"),
        ("pretrain.batch_size=1", "at least 2"),
    ],
)
def test_what_is_wrong_is_said(override: str, said: str) -> None:
    with pytest.raises(InputError, match=override.partition("=")[0].split(".")[-1]) as raised:
        read(None, [override])
    assert said in str(raised.value)


@pytest.mark.parametrize("asked", ["arms=[meta_full_unroll]", "meta.encoder=true"])
def test_the_closed_form_head_cannot_unroll_an_encoder(asked: str) -> None:
    with pytest.raises(InputError, match=r"meta\.head: found 'ridge', expected unroll"):
        read(None, ["meta.head=ridge", asked])


@pytest.mark.parametrize(("asked", "key"), [("meta.head=ridge", "head"), ("meta.resplit=true", "resplit")])
def test_phi_is_not_validated_on_what_is_trained_along(asked: str, key: str) -> None:
    with pytest.raises(InputError, match=rf"meta\.{key}: .* where pretrain\.cotrain is above 0"):
        read(None, ["pretrain.cotrain=1", asked])
    read(None, ["pretrain.cotrain=1", asked, "arms=[supervised,cotrain]"])


def test_arms_with_weights_of_their_own_may_train_fine_tuning_tasks_along() -> None:
    config = read(None, ["pretrain.cotrain=0.5"])
    assert {arm for arm in ARMS if not cotrains(config, arm)} == {*RULES, "none", "ceiling"}
    assert not any(cotrains(read(None, []), arm) for arm in ARMS)


def test_every_arm_is_of_one_kind() -> None:
    plain = {"none", "supervised", "random_weights", "similarity", "ceiling", "oracle"}
    kinds = [set(RULES), set(FROM_META), set(VARIANTS), {SEARCH}, plain]
    assert set.union(*kinds) == set(ARMS)
    assert sum(map(len, kinds)) == len(ARMS)


def test_variants_change_the_phi_step_and_nothing_else() -> None:
    meta = read(None, []).meta
    assert of_arm(meta, "meta") == meta
    assert (of_arm(meta, "meta_neumann5").inverse, of_arm(meta, "meta_neumann5").terms) == ("neumann", 5)
    assert of_arm(meta, "meta_full_unroll").encoder

"""Label sweeps: what a cell trains on, what chooses, that the test set is scored once, and that nothing depends on N."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from toys import Means, ToyEncoder, records

from ecgmeta.data import ArrayDataset, ECGDataset
from ecgmeta.evaluation import Arm, CellResult, finetune, label_sweep, linear_probe
from ecgmeta.evaluation import training as cell_training
from ecgmeta.evaluation.cells import read_cell
from ecgmeta.evaluation.subsets import labelled_rows, train_validation
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.seeds import derive
from ecgmeta.runtime.signals import Stopped

pytestmark = pytest.mark.slow  # runs of the whole path, a second or more each


def dataset(seed: int, n: int, first: int) -> ECGDataset:
    """Records of the toy problem, two a patient."""
    made = records(seed, n)
    meta = pd.DataFrame({"patient": [f"p{first + k // 2}" for k in range(n)]})
    labels = pd.DataFrame(made.y.numpy(), columns=list(made.label_names))
    return ArrayDataset(made.x.numpy(), labels, fs=64, leads=("I", "II"), meta=meta)


@pytest.fixture(scope="module")
def pool() -> ECGDataset:
    return dataset(0, 60, 0)


@pytest.fixture(scope="module")
def test_set() -> ECGDataset:
    return dataset(1, 40, 100)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


QUICK: dict[str, Any] = {"sizes": [20, 40], "seeds": 2, "epochs": 3, "patience": None, "seed": 7}


def arms() -> dict[str, Any]:
    return {
        "toy": ToyEncoder(0),
        "fresh": Arm(ToyEncoder, pretrained=False),
        "means": Arm(lambda seed: Means(), protocols=("linear",)),
    }


@pytest.fixture(scope="module")
def swept(
    pool: ECGDataset, test_set: ECGDataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[CellResult]]:
    folder = tmp_path_factory.mktemp("sweep")
    return folder, label_sweep(arms(), pool, test_set, folder, **QUICK)


def find(results: list[CellResult], arm: str, protocol: str, labels: int, seed: int = 0) -> CellResult:
    wanted = (arm, protocol, labels, seed)
    return next(r for r in results if (r.cell.arm, r.cell.protocol, r.cell.labels, r.cell.seed) == wanted)


def same(a: list[CellResult], b: list[CellResult]) -> bool:
    return [r.cell for r in a] == [r.cell for r in b] and all(
        np.array_equal(x.logits, y.logits) for x, y in zip(a, b, strict=True)
    )


def test_every_cell_is_there_and_probes_of_given_encoders_have_one_seed(
    swept: tuple[Path, list[CellResult]],
) -> None:
    found = [(r.cell.labels, r.cell.arm, r.cell.protocol, r.cell.seed) for r in swept[1]]
    of_one_size = [
        *(("toy", "full", 0), ("toy", "full", 1), ("toy", "linear", 0)),
        *(("fresh", "full", 0), ("fresh", "full", 1), ("fresh", "linear", 0), ("fresh", "linear", 1)),
        ("means", "linear", 0),
    ]
    assert found == [(size, *cell) for size in (20, 40) for cell in of_one_size]
    assert len(list(swept[0].glob("*.npz"))) == len(found)


@pytest.mark.parametrize("labels", [20, 40])
def test_a_cell_is_what_fine_tuning_and_the_probe_give_on_its_records(
    labels: int, swept: tuple[Path, list[CellResult]], pool: ECGDataset, test_set: ECGDataset
) -> None:
    parts = train_validation(pool, labelled_rows(pool, labels, 7), 7)
    for arm, encoder in (("toy", ToyEncoder(0)), ("fresh", ToyEncoder(1))):
        whole = finetune(
            encoder, *parts, test_set, seed=derive(7, "fine-tuning", 1) % 2**31, epochs=3, patience=None,
            train_norm=arm == "fresh",
        )  # fmt: skip
        found = find(swept[1], arm, "full", labels, 1)
        assert np.array_equal(found.logits, np.asarray(whole.test_logits))
        assert found.info["history"] == whole.history
    probe = linear_probe(Means(), *parts, test_set)
    found = find(swept[1], "means", "linear", labels)
    assert np.array_equal(found.logits, np.asarray(probe.test_logits))
    assert found.records.tolist() == test_set.meta["record"].tolist()
    assert np.array_equal(found.targets, test_set.labels)


def test_subsets_are_nested_and_split_by_patient(pool: ECGDataset) -> None:
    small, large = (set(labelled_rows(pool, n, 7).tolist()) for n in (20, 40))
    assert small < large
    train, validation = train_validation(pool, labelled_rows(pool, 40, 7), 7)
    assert not set(train.meta["patient"]) & set(validation.meta["patient"])
    assert len(train) + len(validation) == 40
    assert set(labelled_rows(pool, 20, 7, draw=1).tolist()) != small


def test_redrawn_subsets_give_the_probe_all_seeds(
    pool: ECGDataset, test_set: ECGDataset, tmp_path: Path
) -> None:
    found = label_sweep(
        {"means": Means()}, pool, test_set, tmp_path, sizes=[20], protocols=["linear"], redraw=True, seed=7
    )
    assert len(found) == 3
    assert len({r.logits.tobytes() for r in found}) == 3
    parts = train_validation(pool, labelled_rows(pool, 20, 7, draw=2), 7, draw=2)
    assert np.array_equal(found[2].logits, np.asarray(linear_probe(Means(), *parts, test_set).test_logits))


def test_validation_chooses_the_rate_and_a_diverging_one_is_said(
    pool: ECGDataset, test_set: ECGDataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**QUICK, "sizes": [40], "seeds": 1, "protocols": ["full"], "epochs": 6}
    rates = [1e-6, 3e-2, 1e30]
    (found,) = label_sweep({"toy": ToyEncoder(0)}, pool, test_set, tmp_path / "all", lrs=rates, **options)
    alone = [
        label_sweep({"toy": ToyEncoder(0)}, pool, test_set, tmp_path / str(k), lrs=[lr], **options)[0]
        for k, lr in enumerate(rates[:2])
    ]
    best = max(alone, key=lambda r: (r.info["chosen"]["val_macro_auroc"], -r.info["chosen"]["val_loss"]))
    assert np.array_equal(found.logits, best.logits)
    chosen = found.info["chosen"]
    assert chosen["lr"] == best.info["chosen"]["lr"] == 3e-2
    assert [entry["lr"] for entry in chosen["tried"]] == rates
    assert "not" in chosen["tried"][2]["failed"] or "finite" in chosen["tried"][2]["failed"]
    with pytest.raises(FloatingPointError):
        label_sweep({"toy": ToyEncoder(0)}, pool, test_set, tmp_path / "bad", lrs=[1e30], **options)


def test_the_test_records_are_read_once_a_cell_and_their_labels_never(
    pool: ECGDataset, test_set: ECGDataset, tmp_path: Path
) -> None:
    """However many rates and epochs there are; and with all test labels turned around every choice stays."""
    reads: list[int] = []

    class Watched(ECGDataset):
        def __getitem__(self, index: Any) -> tuple[torch.Tensor, torch.Tensor]:
            reads.append(len(index))
            return super().__getitem__(index)

    def watched(labels: np.ndarray) -> ECGDataset:
        return Watched(
            test_set.store, labels, fs=64, leads=test_set.leads, label_names=("A", "B"), meta=test_set.meta
        )

    options: dict[str, Any] = {**QUICK, "sizes": [40], "seeds": 1, "lrs": [1e-3, 1e-2]}
    found = label_sweep({"toy": ToyEncoder(0)}, pool, watched(test_set.labels), tmp_path / "a", **options)
    assert reads == [40, 40]  # one cell of each protocol
    turned = label_sweep(
        {"toy": ToyEncoder(0)}, pool, watched(1 - test_set.labels), tmp_path / "b", **options
    )
    assert same(found, turned)
    again = label_sweep({"toy": ToyEncoder(0)}, pool, watched(test_set.labels), tmp_path / "a", **options)
    assert len(reads) == 4
    assert same(found, again)
    assert [r.info["scorings"] for r in again] == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o | {"epochs": 4},
        lambda o: o | {"seed": 8},
        lambda o: o | {"lrs": [1e-3, 2e-3]},
        lambda o: o | {"encoders": {"toy": ToyEncoder(1)}},
        lambda o: o | {"train": dataset(5, 60, 0)},
        lambda o: o | {"test": dataset(6, 40, 100)},
    ],
)
def test_a_cell_of_other_settings_encoder_or_records_is_trained_again_and_counted(
    change: Callable[[dict[str, Any]], dict[str, Any]], pool: ECGDataset, test_set: ECGDataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**QUICK, "sizes": [40], "seeds": 1, "protocols": ["full"]}
    options |= {"encoders": {"toy": ToyEncoder(0)}, "train": pool, "test": test_set, "out": tmp_path}
    (first,) = label_sweep(**options)
    (second,) = label_sweep(**change(options))
    assert (first.info["scorings"], second.info["scorings"]) == (1, 2)
    assert not np.array_equal(first.logits, second.logits) or "lrs" in change(options)
    (third,) = label_sweep(**change(options))
    assert same([second], [third])
    assert third.info["scorings"] == 2


def test_a_stop_finishes_its_cell_and_the_next_call_does_the_rest(
    swept: tuple[Path, list[CellResult]], pool: ECGDataset, test_set: ECGDataset, tmp_path: Path
) -> None:
    def stop(done: int, total: int, text: str) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped):
        label_sweep(arms(), pool, test_set, tmp_path, progress=stop, **QUICK)
    assert len(list(tmp_path.glob("*.npz"))) == 3
    trained: list[str] = []
    original = cell_training.train_cell

    def counted(records: Any, task: Any) -> Any:
        trained.append(task.cell.name)
        return original(records, task)

    with mock.patch("ecgmeta.evaluation.sweep.train_cell", counted):
        found = label_sweep(arms(), pool, test_set, tmp_path, **QUICK)
    assert same(found, swept[1])
    assert len(trained) == len(found) - 3


def test_processes_change_no_number(
    swept: tuple[Path, list[CellResult]], pool: ECGDataset, test_set: ECGDataset, tmp_path: Path
) -> None:
    seen: list[int] = []
    found = label_sweep(
        arms(), pool, test_set, tmp_path / "a", processes=3, progress=lambda d, t, s: seen.append(d), **QUICK
    )
    assert same(found, swept[1])
    assert seen[-1] == len(found)
    with pytest.raises(FloatingPointError, match="finite"):
        label_sweep(arms(), pool, test_set, tmp_path / "b", processes=2, **QUICK | {"lrs": [1e30]})


def test_what_cannot_be_swept_is_refused(pool: ECGDataset, test_set: ECGDataset, tmp_path: Path) -> None:
    def refused(field: str, **changes: Any) -> None:
        options = {"encoders": {"toy": ToyEncoder(0)}, "train": pool, "test": test_set, "out": tmp_path}
        with pytest.raises(InputError) as caught:
            label_sweep(**{**options, **QUICK, **changes})
        assert field in str(caught.value)
        assert not list(tmp_path.glob("*.npz"))

    refused("patients", test=dataset(1, 40, 20))
    refused("label_names", test=test_set.with_labels(["A"]))
    refused("labels", sizes=[1000])
    refused("lrs", lrs=[])
    refused("protocol", protocols=["half"])
    refused("arm", encoders={"../toy": ToyEncoder(0)})
    refused("processes", processes=0)
    refused("cells", sizes=[])
    one_class = pool.subset(pool.labels[:, 0] == 1)
    refused("one class only", train=one_class, sizes=[10])


def test_a_broken_cell_is_named(
    swept: tuple[Path, list[CellResult]], pool: ECGDataset, test_set: ECGDataset, tmp_path: Path
) -> None:
    file = swept[1][0].cell.file(swept[0])
    broken = tmp_path / file.name
    broken.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match="delete it"):
        read_cell(broken)

"""Where a saved model is looked for: a folder, then the hub, which is asked only for what could be there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ecgmeta.augment import LearnedWarp, load_augmenter
from ecgmeta.encoders import ResNet1d, load_encoder
from ecgmeta.runtime.errors import InputError

LOADERS: dict[str, Callable[[str], object]] = {
    "augmenter": load_augmenter,
    "encoder": load_encoder,
    "LearnedWarp": LearnedWarp.from_pretrained,
    "ResNet1d": ResNet1d.from_pretrained,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What the hub, out of reach, was asked for; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    names = []

    def download(repo_id: str, filename: str, **rest: object) -> str:
        names.append(f"{repo_id}/{filename}")
        raise OSError("no network\nand more")

    for module in ("ecgmeta.runtime.pretrained", "huggingface_hub.hub_mixin"):
        monkeypatch.setattr(f"{module}.hf_hub_download", download)
    return names


@pytest.mark.parametrize("what", LOADERS)
@pytest.mark.parametrize(
    "name", ["nope", "./runs/mine", "../runs", "~/runs", "runs/mine/augmenter", "runs/mine/", "/runs/mine"]
)
def test_what_is_no_hub_id_is_not_asked_for(what: str, name: str, asked: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        LOADERS[what](name)
    expected = f"{name}: folder: found no such folder, expected a saved {what} or a hub id owner/name"
    assert str(caught.value) == expected
    assert asked == []


@pytest.mark.parametrize("what", LOADERS)
def test_a_missing_folder_beside_others_is_not_asked_for(
    what: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(
        InputError, match="runs/mine: folder: found none of that name in runs/, which is here"
    ):
        LOADERS[what]("runs/mine")
    assert asked == []


@pytest.mark.parametrize("what", ["augmenter", "encoder"])
def test_a_hub_out_of_reach_is_asked_once_and_said_in_one_line(what: str, asked: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        LOADERS[what]("owner/name")
    assert str(caught.value) == (
        f"owner/name: folder: found no such folder, nor on the hub (no network), "
        f"expected a saved {what} or a hub id owner/name"
    )
    assert asked == ["owner/name/config.json"]


@pytest.mark.parametrize("what", ["augmenter", "encoder"])
def test_a_folder_of_something_else_is_named(what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"config\.json: found no such file, expected a saved {what}$"):
        LOADERS[what](str(tmp_path))

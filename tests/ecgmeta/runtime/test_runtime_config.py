"""Configurations: defaults, differences, overrides; and one line for everything that can be wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ecgmeta.runtime.config import all_keys, difference, load_config, to_yaml
from ecgmeta.runtime.errors import InputError


@dataclass
class Inner:
    depth: int = 2
    rate: float = 0.5


@dataclass
class Optimiser:
    steps: int = 10
    lr: float = 0.1
    inner: Inner = field(default_factory=Inner)


@dataclass
class Settings:
    seed: int = 0
    name: str = "plain"
    fast: bool = False
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    optimiser: Optimiser = field(default_factory=Optimiser)


def _file(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def _refused(file: Path | None = None, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(InputError) as caught:
        load_config(Settings, file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "found" in message
    assert "expected" in message
    return message


def test_defaults_are_the_schemas() -> None:
    assert load_config(Settings) == Settings()


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}"])
def test_an_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    assert load_config(Settings, _file(tmp_path, text)) == Settings()


def test_a_file_holds_differences_and_overrides_come_last(tmp_path: Path) -> None:
    file = _file(tmp_path, "name: filed\noptimiser:\n  lr: 1e-4\n  inner: {depth: 5}\nsizes: [7]\n")
    found = load_config(Settings, file, ["optimiser.inner.depth=6", "fast=true", "seed=3"])
    assert found == Settings(
        seed=3, name="filed", fast=True, sizes=[7], optimiser=Optimiser(lr=1e-4, inner=Inner(depth=6))
    )
    assert isinstance(found.optimiser.inner, Inner)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sizes=[3, 4]", Settings(sizes=[3, 4])),
        ("sizes=[]", Settings(sizes=[])),
        ("name=a=b", Settings(name="a=b")),
        ("name='4'", Settings(name="4")),
        ("optimiser.lr=1e-3", Settings(optimiser=Optimiser(lr=1e-3))),
        ("optimiser.lr=2", Settings(optimiser=Optimiser(lr=2.0))),
        ("optimiser={steps: 4, inner: {rate: 1}}", Settings(optimiser=Optimiser(4, inner=Inner(rate=1.0)))),
        ("name=${optimiser.steps}", Settings(name="10")),
    ],
)
def test_overrides_are_yaml_values(override: str, expected: Settings) -> None:
    assert load_config(Settings, None, [override]) == expected


def test_writing_and_reading_gives_the_same(tmp_path: Path) -> None:
    config = Settings(seed=5, name="it's: odd", optimiser=Optimiser(lr=1e-7, inner=Inner(3, 0.25)))
    assert load_config(Settings, _file(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("sed", "seed"),
        ("optimizer.lr", "optimiser"),
        ("optimiser.stesp", "optimiser.steps"),
        ("optimiser.inner.dept", "optimiser.inner.depth"),
    ],
)
def test_an_unknown_key_names_the_nearest_in_a_file_and_on_the_command_line(
    tmp_path: Path, key: str, nearest: str
) -> None:
    *groups, last = key.split(".")
    text = (
        "".join(f"{'  ' * i}{group}:\n" for i, group in enumerate(groups))
        + f"{'  ' * len(groups)}{last}: 1\n"
    )
    file = _file(tmp_path, text)
    for message, where in (
        (_refused(None, (f"{key}=1",)), "command line"),
        (_refused(file), str(file)),
    ):
        assert message.startswith(where)
        assert "an unknown key" in message
        assert f"the nearest is '{nearest}'" in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=many", "seed: found 'many', expected int"),
        ("seed=3.7", "seed: found 3.7, expected int"),  # not 3: no silent numbers
        ("seed=", "seed: found None, expected int"),
        ("seed={a: 1}", "seed: found {'a': 1}, expected int"),
        ("fast=perhaps", "fast: found 'perhaps', expected bool"),
        ("sizes=3", "sizes: found 3, expected list[int]"),
        ("sizes=[1, x]", "sizes[1]: found 'x', expected list[int]"),
        ("optimiser.inner.rate=x", "optimiser.inner.rate: found 'x', expected float"),
        ("name=${nothing}", "name: found Interpolation key 'nothing' not found"),
        ("optimiser=3", "optimiser: found 3, expected a group of keys: ['inner', 'lr', 'steps']"),
        ("optimiser=", "optimiser: found None, expected a group"),
        ("optimiser.inner=[1]", "optimiser.inner: found [1], expected a group"),
        ("seed", "override: found 'seed', expected key=value"),
        ("=3", "override: found '=3', expected key=value"),
        ("seed=[", "seed: found '[', expected a YAML value"),
        ("zzz=3", "expected a known one; here these are ["),  # nothing is near
    ],
)
def test_a_wrong_value_names_its_field(override: str, said: str) -> None:
    assert said in _refused(None, (override,))


def test_a_wrong_value_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = _file(tmp_path, "optimiser:\n  steps: soon\n")
    assert f"{file}: optimiser.steps: found 'soon', expected int" in _refused(file)


def test_broken_yaml_names_its_line(tmp_path: Path) -> None:
    file = _file(tmp_path, "seed: 3\nname: [a,\nsizes: 3\n")
    assert re.search(r"settings\.yaml: configuration: found .* in line [34],", _refused(file))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    assert "missing.yaml: configuration: found no such file" in _refused(tmp_path / "missing.yaml")
    assert "no such file" in _refused(tmp_path)
    assert "found list, expected key: value lines" in _refused(_file(tmp_path, "- 1\n"))
    assert "expected a YAML file" in _refused(_file(tmp_path, "a: [1\nb: }"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x80")
    assert "expected a YAML file" in _refused(binary)


def test_difference_lists_every_leaf_that_changed() -> None:
    new = Settings(seed=1, optimiser=Optimiser(inner=Inner(rate=0.1)))
    assert difference(Settings(), new) == [("seed", 0, 1), ("optimiser.inner.rate", 0.5, 0.1)]
    assert difference(new, new) == []


def test_all_keys_are_dotted_groups_included() -> None:
    assert list(all_keys(Settings))[-4:] == [
        "optimiser.lr",
        "optimiser.inner",
        "optimiser.inner.depth",
        "optimiser.inner.rate",
    ]

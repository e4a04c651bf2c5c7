"""Typed configurations: defaults in dataclasses, short YAML files of differences, dotted overrides.

Everything is checked when it is read: an unknown key names the nearest known one, a wrong type names the field.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ecgmeta.runtime.errors import InputError

Config = TypeVar("Config")


def load_config(schema: type[Config], file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """An instance of ``schema``: its defaults, then the YAML ``file``, then ``key=value`` overrides.

    Raises:
        InputError: a missing file, a key that the schema lacks (with the nearest one it has), a value of another type.
    """
    config = OmegaConf.structured(schema)
    if file is not None:
        config = _merge(config, _read_yaml(file), str(file), schema)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError("command line", "override", repr(text), "key=value, such as pretrain.epochs=20")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(
                "command line", key, repr(value), f"a YAML value ({_first_line(error)})"
            ) from error
        nested: Any = parsed
        for part in reversed(key.split(".")):
            nested = {part: nested}
        config = _merge(config, nested, "command line", schema)
    try:
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:  # a ${reference} to nothing is only met here
        where = str(file) if file is not None and not overrides else "configuration"
        raise InputError(
            where, error.full_key or "value", _first_line(error), "a value, or a reference to one"
        ) from error
    if not isinstance(result, schema):
        raise TypeError(f"{schema.__name__} is not a dataclass")
    return result


def to_yaml(config: Any) -> str:
    """The whole configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def difference(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) of every leaf in which two configurations of one schema differ."""
    return [(key, a, b) for (key, a), (_, b) in zip(_leaves(old), _leaves(new), strict=True) if a != b]


def at(config: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def need(ok: bool, key: str, found: Any, expected: str) -> None:
    """Raise :class:`InputError` about a key unless ``ok``."""
    if not ok:
        raise InputError("configuration", key, repr(found), expected)


def check_values(
    config: Any,
    choices: Mapping[str, Sequence[str]],
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    below_one: Sequence[str] = (),
) -> None:
    """Check keys against what they may hold.

    Args:
        choices: key -> the texts that it, or every item of its list, may be.
        positive: keys of finite numbers above 0.
        not_negative: keys of finite numbers that are at least 0.
        below_one: keys of numbers below 1.

    Raises:
        InputError: naming the first key that is wrong.
    """
    for key, known in choices.items():
        value = at(config, key)
        for one in value if isinstance(value, list) else [value]:
            need(one in known, key, one, f"one of {list(known)}")
    for key in positive:
        need(0 < at(config, key) < math.inf, key, at(config, key), "a number above 0")
    for key in not_negative:
        need(0 <= at(config, key) < math.inf, key, at(config, key), "0 or more")
    for key in below_one:
        need(at(config, key) < 1, key, at(config, key), "below 1")


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(file, "configuration", "no such file", "a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(file, "configuration", _first_line(error), "a YAML file") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(file, "configuration", type(content).__name__, "key: value lines")
    return content


def _merge(config: DictConfig, content: dict[str, Any], where: str, schema: type) -> DictConfig:
    _check_keys(content, schema, where, schema)
    try:
        config.merge_with(OmegaConf.create(content))
    except OmegaConfBaseException as error:
        field = error.full_key or "configuration"
        kind = _kind(schema, field)
        expected = f"{kind} ({_first_line(error)})" if kind else _first_line(error)
        raise InputError(where, field, repr(_at(content, field)), expected) from error
    return config


def _check_keys(content: dict[str, Any], schema: Any, where: str, root: Any, prefix: str = "") -> None:
    known = {f.name: f for f in fields(schema)}
    for key, value in content.items():
        full = f"{prefix}{key}"
        if key not in known:
            near = difflib.get_close_matches(full, list(all_keys(root)), n=1, cutoff=0.5)
            hint = f"the nearest is {near[0]!r}" if near else f"here these are {sorted(known)}"
            raise InputError(where, full, "an unknown key", f"a known one; {hint}")
        nested = _nested(schema, key)
        if nested is None:
            continue
        if not isinstance(value, dict):
            raise InputError(
                where, full, repr(value), f"a group of keys: {sorted(f.name for f in fields(nested))}"
            )
        _check_keys(value, nested, where, root, f"{full}.")


def all_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema."""
    for field in fields(schema):
        yield f"{prefix}{field.name}"
        nested = _nested(schema, field.name)
        if nested is not None:
            yield from all_keys(nested, f"{prefix}{field.name}.")


def _nested(schema: Any, name: str) -> Any | None:
    kind = get_type_hints(schema)[name]
    return kind if is_dataclass(kind) else None


def _kind(schema: Any, key: str) -> str:
    """The annotated type of a field, for people; of a list's item, the list's; empty where there is none."""
    kind: Any = schema
    for part in re.sub(r"\[\d+\]", "", key).split("."):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    return kind.__name__ if type(kind) is type else str(kind or "")


def _at(content: Any, key: str) -> Any:
    """What stands at ``group.key`` or ``group.key[3]``."""
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(content, dict):
            content = content.get(part)
        else:
            content = content[int(part)] if isinstance(content, list) and part.isdigit() else None
    return content


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__

"""``save_pretrained`` / ``from_pretrained`` for every module that leaves a run: safetensors and JSON, never a pickle."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import PART, read_json, unwritable

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

_HUB = (
    "revision",
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
)  # which file of the hub, and how

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(PyTorchModelHubMixin):
    """Hugging Face's mixin, strict: every weight must fit, and what does not is named in one line.

    A folder holds ``config.json`` (the constructor's arguments, and under ``"class"`` whose they are), ``model.safetensors``
    and a ``README.md``.
    """

    @classmethod
    def from_pretrained(cls: type[Model], pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Model:
        """Load from a folder, or from a hub id ``owner/name``; in eval mode unless the class says otherwise.

        Raises:
            InputError: the folder or one of its files is missing or broken, or the weights are another architecture's.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_dir():
            for name in (CONFIG, WEIGHTS):
                if not (path / name).is_file():
                    raise InputError(path, name, "no such file", f"a saved {cls.__name__}")
            _check_config(path / CONFIG, cls)
            return super().from_pretrained(path, **kwargs)
        with _on_hub(pretrained_model_name_or_path, cls.__name__) as hub_id:
            return super().from_pretrained(hub_id, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Save into a folder. Files are written aside and renamed, the weights last: where they stand, all is whole.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        target = Path(save_directory)
        arguments = self._hub_mixin_config if isinstance(self._hub_mixin_config, dict) else {}
        kwargs.setdefault("config", {**arguments, "class": type(self).__name__})
        try:
            target.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(
                prefix=f".{target.name}.", suffix=PART, dir=target.parent
            ) as aside:
                url = super().save_pretrained(aside, **kwargs)
                for name in sorted(os.listdir(aside), key=lambda name: name == WEIGHTS):
                    os.replace(Path(aside, name), target / name)
        except OSError as error:
            raise unwritable(target, error) from error
        except SafetensorError as error:  # what its writer makes of a full disk
            raise unwritable(target, OSError(str(error))) from error
        return url

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **kwargs: Any) -> Any:
        options = {name: kwargs.pop(name) for name in _HUB if name in kwargs}
        kwargs.pop("strict", None)
        path = Path(model_id, WEIGHTS)
        file = str(path) if path.is_file() else hf_hub_download(repo_id=model_id, filename=WEIGHTS, **options)
        try:
            model = cls(**kwargs)
            weights = load_file(file, device=map_location)
        except InputError:
            raise
        except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(
                model_id, "saved model", error, f"a {cls.__name__} written by save_pretrained"
            ) from error
        if not isinstance(model, nn.Module):
            raise TypeError(f"{cls.__name__} is not an nn.Module")
        check_weights(model, {name: tuple(value.shape) for name, value in weights.items()}, model_id)
        model.load_state_dict(weights)
        return model.eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A short card: what the model is and how to load it."""
        name = type(self).__name__
        module = type(self).__module__.rsplit(".", 1)[0]
        what = (type(self).__doc__ or name).strip().splitlines()[0]
        data = ModelCardData(library_name="ecgmeta", tags=["ecgmeta"])
        return ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{what}\n\n"
            f'```python\nfrom {module} import {name}\n\nmodel = {name}.from_pretrained("this folder")\n```\n'
        )


@contextmanager
def _on_hub(source: str | Path, what: str) -> Iterator[str]:
    """Inside, the hub is asked for ``source``, which is no folder; that it has none is one line, named as ``what`` is.

    Only what could be a hub id is asked for, and no folder beside others here: without a network the hub's client tries for
    half a minute.
    """
    text, path = str(source), Path(source)
    expected = f"a saved {what} or a hub id owner/name"
    if path.is_absolute() or len(path.parts) != 2 or text.startswith((".", "~")) or text.endswith("/"):
        raise InputError(source, "folder", "no such folder", expected)
    if path.parent.is_dir():
        raise InputError(
            source, "folder", f"none of that name in {path.parent}/, which is here", f"a saved {what}"
        )
    try:
        yield path.as_posix()
    except InputError:
        raise
    except (OSError, ValueError) as error:  # missing there too, no network, or no hub id at all
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(source, "folder", f"no such folder, nor on the hub ({reason})", expected) from error


def read_config(source: str | Path, what: str, **options: Any) -> dict[str, Any]:
    """The ``config.json`` of a saved model in a folder or under a hub id ``owner/name``.

    Args:
        source: the folder or hub id.
        what: is saved there, as errors call it: an encoder, an augmenter.
        options: of ``from_pretrained``; those that choose a file of the hub (``revision``, ``token`` ...) count.

    Raises:
        InputError: there is none, or a file that holds something else.
    """
    file = Path(source, CONFIG)
    if not Path(source).is_dir():
        hub = {name: value for name, value in options.items() if name in _HUB}
        with _on_hub(source, what) as hub_id:
            file = Path(hf_hub_download(repo_id=hub_id, filename=CONFIG, **hub))
    if not file.is_file():
        raise InputError(source, CONFIG, "no such file", f"a saved {what}")
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError(file, "content", type(config).__name__, "the arguments of a saved model")
    return config


def _check_config(file: Path, cls: type) -> None:
    """Raise :class:`InputError` unless ``file`` holds arguments of ``cls`` (the mixin would drop the others unsaid)."""
    config = read_json(file)
    if not isinstance(config, dict):
        raise InputError(file, "content", type(config).__name__, f"the arguments of {cls.__name__}")
    saved = config.pop("class", cls.__name__)  # folders of earlier versions do not say
    if saved != cls.__name__:
        raise InputError(file, "class", saved, cls.__name__)
    known = [name for name in inspect.signature(cls).parameters if name != "self"]
    for name in config:
        if name not in known:
            raise InputError(file, name, "an unknown argument", f"those of {cls.__name__}: {known}")


def check_weights(model: nn.Module, saved: dict[str, tuple[int, ...]], where: object) -> None:
    """Raise :class:`InputError` naming the first tensor whose shape is not the model's."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in [*own, *saved]:
        if own.get(name) != saved.get(name):
            found, expected = saved.get(name, "nothing"), own.get(name, "nothing")
            raise InputError(where, name, f"shape {found}", f"shape {expected} (another architecture?)")

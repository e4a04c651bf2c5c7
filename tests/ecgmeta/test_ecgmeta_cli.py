"""The command line as a whole: it answers at once, and every end of it has its exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ecgmeta import __version__
from ecgmeta.cli import app
from ecgmeta.runtime.cli import guarded
from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.signals import Stopped

COMMANDS = ("pretrain", "finetune", "evaluate", "report", "export", "demo", "data", "augment")


def test_help_loads_nothing_slow() -> None:
    code = (
        "import sys\n"
        "from ecgmeta.cli import main\n"
        "sys.argv = ['ecgmeta', '--help']\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n    assert leaving.code == 0\n"
        "slow = {'torch', 'numpy', 'pandas', 'wfdb', 'lightly', 'torchmetrics', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output.strip() == __version__


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("file.dat", "field", 1, 2), 2, "error: file.dat: field: found 1, expected 2"),
        (FloatingPointError("step 3: loss is nan"), 1, "error: stopped: step 3: loss is nan."),
        (Stopped(signal.SIGINT), 130, "stopped by SIGINT: saved. The same command goes on from here."),
        (Stopped(signal.SIGTERM), 0, "stopped by SIGTERM: saved."),
        (KeyboardInterrupt(), 130, "error: interrupted. The same command goes on"),
        (SystemExit(130), 130, "error: interrupted. The same command goes on"),
        (PermissionError(13, "Permission denied", "runs"), 2, "error: runs: Permission denied"),
    ],
)
def test_exit_codes(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as leaving:
        guarded(command)
    assert leaving.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_other_errors_keep_their_traceback() -> None:
    def command() -> None:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        guarded(command)


def test_synthetic_recordings_as_files(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["data", "synth", str(tmp_path), "--n", "6", "--fs", "50"])
    assert shown.exit_code == 0, shown.output
    signals = np.load(tmp_path / "signals.npy", allow_pickle=False)
    assert signals.shape == (6, 12, 500)
    assert signals.dtype == np.float32
    for name in ("labels.csv", "meta.csv"):
        assert len((tmp_path / name).read_text().splitlines()) == 7


def test_a_checkpoint_of_the_released_code_becomes_an_augmenter(tmp_path: Path) -> None:
    from ecgmeta.augment import LearnedPolicy, load_augmenter

    prefix = "sub_policies.0.stages.0."
    state = {f"{prefix}_weights": torch.arange(7.0)}
    torch.save({"epoch": 1, "aug_sd": state}, tmp_path / "taskaug.pt")
    result = CliRunner().invoke(
        app, ["augment", "import", str(tmp_path / "taskaug.pt"), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    policy = load_augmenter(tmp_path / "out")
    assert isinstance(policy, LearnedPolicy)
    assert policy.logits.tolist() == [list(range(7))]
    assert (policy.fs, policy.leads, policy.std) == (250.0, 12, 1.0)
    options = ["--fs", "500", "--leads", "8", "--std", "0.2", "--out", str(tmp_path / "own")]
    result = CliRunner().invoke(app, ["augment", "import", str(tmp_path / "taskaug.pt"), *options])
    assert result.exit_code == 0, result.output
    policy = load_augmenter(tmp_path / "own")
    assert (policy.fs, policy.leads, policy.mean, policy.std) == (500.0, 8, 0.0, 0.2)

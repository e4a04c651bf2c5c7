"""Kill a run at random moments, again and again, and see that it comes to the numbers of one that nobody disturbed.

    python -m tests.soak --kills 50

A tiny experiment (two arms, a φ step every fifth step, fine-tuning, evaluation) is started, killed by SIGKILL and started
again in the same folder until it ends; then it is compared with an undisturbed run, and the next round begins, until all kills
are spent. Every third kill waits for a file that is being written. Exit code 1 where anything differs.

Each start is a fork of a process that has imported everything and computed nothing: nothing is written during imports, so
kills there would be kills wasted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecgmeta.runtime.files import PART

RUN = [
    *("data.synthetic.n=80", "data.duration=5", "data.fs=50", "encoder.width=4", "through=evaluate"),
    *("pretrain.batch_size=8", "pretrain.epochs=1000", "pretrain.log_every=1", "pretrain.checkpoint_every=4"),
    *("meta.labels=30", "meta.batch_size=8", "meta.period=5", "meta.warmup_epochs=1", "compare=[simclr]"),
    *("finetune.labels=[30]", "finetune.seeds=1", "finetune.epochs=2", "evaluate.bootstrap=20"),
]
SHARE = 0.3  # of an undisturbed run: the longest that a start is left alone before its kill


class Soak:
    """One undisturbed run, and rounds of killed ones beside it in ``folder``."""

    def __init__(self, folder: Path, steps: int, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.arguments = [*RUN, f"pretrain.max_steps={steps}"]
        self.killed = 0

    def start(self, run: Path) -> int:
        """The process id of a new start of ``run``."""
        sys.stdout.flush()
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            said = os.open(self.folder / f"{run.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            code = _call("pretrain", "--out", str(run), *self.arguments)
        finally:
            os._exit(code)

    def whole(self) -> float:
        """The run that nobody disturbs; returns its seconds."""
        begun = time.monotonic()
        _, status = os.waitpid(self.start(self.folder / "whole"), 0)
        if status:
            raise SystemExit(f"the undisturbed run failed: {self.folder / 'whole.log'}")
        return time.monotonic() - begun

    def round(self, run: Path, kills: int, longest: float) -> None:
        """Start and kill ``run`` until it ends; after ``kills`` kills it is left alone."""
        while True:
            old = _parts(run)
            process = self.start(run)
            if self.killed < kills:
                delay = self.rng.uniform(0, longest)
                writing = self.killed % 3 == 2
                ended = self._wait(process, delay, run if writing else None, old)
                if ended is None:
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    self.killed += 1
                    left = " in the middle of a write" if _parts(run) - old else ""
                    print(f"kill {self.killed:3d} after {delay:5.2f} s{left}: {where(run)}")
                    continue
            else:
                ended = os.waitpid(process, 0)[1]
            if ended:
                raise SystemExit(f"{run.name} failed by itself: {self.folder / run.name}.log")
            return

    def _wait(self, process: int, seconds: float, writing: Path | None, old: set[str]) -> int | None:
        """The exit status of a process that ends within ``seconds``, and a second more for a new write; else None."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                return status
            time.sleep(0.002)
        until = time.monotonic() + 1
        while writing is not None and time.monotonic() < until and not _parts(writing) - old:
            pass
        done, status = os.waitpid(process, os.WNOHANG)
        return status if done else None


def _call(*arguments: str) -> int:
    import torch

    from ecgmeta.cli import main

    torch.set_num_threads(1)
    sys.argv = ["ecgmeta", *arguments]
    try:
        main()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def _parts(run: Path) -> set[str]:
    """What is being written in a run, or was when it was killed."""
    found: set[str] = set()
    for folder in (run, run / "finetune", run / "compare" / "simclr"):
        if folder.is_dir():
            found |= {name for name in os.listdir(folder) if name.endswith(PART)}
    return found


def where(run: Path) -> str:
    """How far a killed run had come, as its files tell."""
    for name, folder in (("simclr", run / "compare" / "simclr"), ("meta", run)):
        if (folder / "metrics.jsonl").exists() and not (folder / "encoder" / "model.safetensors").exists():
            lines = (folder / "metrics.jsonl").read_bytes().count(b"\n")
            kept = "a checkpoint" if (folder / "last.ckpt").exists() else "no checkpoint"
            return f"pre-training {name}, {lines} steps logged, {kept}"
    if not (run / "metrics.jsonl").exists():
        return "before pre-training"
    cells = len(list((run / "finetune").glob("*.json"))) if (run / "finetune").is_dir() else 0
    return f"after pre-training, {cells} cells, {'' if (run / 'results.json').exists() else 'no '}results"


def differences(run: Path, whole: Path) -> list[str]:
    """What differs between two finished runs: metrics (each step once), results, networks (bytes), files left over."""
    found = []
    for arm in (".", "compare/simclr"):
        lines, expected = _metrics(run / arm), _metrics(whole / arm)
        if [line["step"] for line in lines] != list(range(len(expected))):
            found.append(f"{arm}: a step is missing or there twice in metrics.jsonl")
        elif lines != expected:
            found.append(f"{arm}: metrics.jsonl")
        networks = [f"{arm}/{name}" for name in ("encoder", "augmenter", "augmenter_before")]
        found += [name for name in networks if _bytes(run / name) != _bytes(whole / name)]
    results = [_plain(json.loads((folder / "results.json").read_text())) for folder in (run, whole)]
    if results[0] != results[1]:
        found.append("results.json")
    left = [str(path.relative_to(run)) for path in run.rglob(f"*{PART}")]
    return found + [f"left over: {name}" for name in left]


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [_plain(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _plain(value: Any) -> Any:
    """JSON without times."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "seconds"}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200, help="pre-training steps of each arm")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="folder for the runs; by default a temporary one")
    options = parser.parse_args(arguments)
    folder = options.out or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    # What every start needs, once: evaluation and the report bring the slow ones.
    for module in (
        "ecgmeta.cli",
        "ecgmeta.experiment.stages",
        "ecgmeta.evaluation",
        "lightly.loss",
        "torchmetrics",
    ):
        importlib.import_module(module)
    soak = Soak(folder, options.steps, options.seed)
    seconds = soak.whole()
    print(f"undisturbed: {seconds:.1f} s for 2 arms of {options.steps} steps, in {folder}")
    rounds, wrong = 0, 0
    while soak.killed < options.kills:
        rounds += 1
        before, run = soak.killed, folder / f"round{rounds}"
        soak.round(run, options.kills, SHARE * seconds)
        found = differences(run, folder / "whole")
        wrong += bool(found)
        verdict = "DIFFERS in " + ", ".join(found) if found else "the same to the last bit"
        print(f"round {rounds}, {soak.killed - before} kills: {verdict}")
    print(f"{soak.killed} kills, {rounds} runs that ended, {wrong} that differ from the undisturbed one")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())

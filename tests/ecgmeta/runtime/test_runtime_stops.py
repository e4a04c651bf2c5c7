"""Stops, exit codes and progress: what a terminal sees."""

from __future__ import annotations

import io
import signal
import threading

import pytest
from rich.console import Console

from ecgmeta.runtime import progress
from ecgmeta.runtime.cli import guarded
from ecgmeta.runtime.errors import Diverged, InputError
from ecgmeta.runtime.signals import Stopped, stop_at_once, stop_between_steps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_acts_when_it_is_asked_for(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stop_between_steps() as stop:
        stop.check()
        signal.raise_signal(number)
        finished = True  # the step under way goes on
        with pytest.raises(Stopped, match=f"stopped by {number.name}") as caught:
            stop.check()
    assert finished
    assert caught.value.number == number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_acts_at_once() -> None:
    # A shell starts a background job with SIGINT ignored, and then there is no action to come back to.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_between_steps() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_sigterm_stops_at_once_through_what_catches_exceptions() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def read() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:  # as readers of broken files do
            pytest.fail("taken for a failure")

    with pytest.raises(Stopped, match="SIGTERM") as caught, stop_at_once():
        read()
    assert caught.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_between_steps_wins_over_at_once_until_the_second_signal() -> None:
    with stop_at_once(), stop_between_steps() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)


def test_the_handlers_come_back_after_a_failure() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="broken"), stop_between_steps():
        raise RuntimeError("broken")
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_changes() -> None:
    found: list[object] = []

    def work() -> None:
        with stop_between_steps() as stop:
            stop.check()
            found.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (InputError("a.dat", "length", 2, 4), 2, "error: a.dat: length: found 2, expected 4"),
        (
            FloatingPointError("loss is\nnan at step 3"),
            1,
            "error: stopped: loss is nan at step 3. The last checkpoint",
        ),
        (Diverged("step 3: loss is nan."), 1, "error: stopped: step 3: loss is nan.\n"),
        (Stopped(signal.SIGTERM, "all stands."), 0, "stopped by SIGTERM: all stands.\n"),
        (Stopped(signal.SIGINT), 130, "stopped by SIGINT: saved. The same command goes on from here."),
        (Stopped(signal.SIGTERM), 0, "stopped by SIGTERM: saved."),
        (KeyboardInterrupt(), 130, "error: interrupted."),
        (SystemExit(130), 130, "error: interrupted."),
        (
            FileNotFoundError(2, "No such file or directory", "x/y"),
            2,
            "error: x/y: No such file or directory",
        ),
        (OSError("disk went away"), 2, "error: file system: disk went away"),
    ],
)
def test_every_end_has_its_code_and_one_line(
    failure: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        raise failure

    with pytest.raises(SystemExit) as caught:
        guarded(app)
    output = capsys.readouterr()
    assert caught.value.code == code
    assert output.err.startswith(said)
    assert output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize("code", [0, 2])
def test_an_app_that_leaves_by_itself_is_left_alone(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def app() -> None:
        raise SystemExit(code)

    with pytest.raises(SystemExit) as caught:
        guarded(app)
    assert caught.value.code == code
    assert capsys.readouterr().err == ""


def test_a_bug_keeps_its_traceback() -> None:
    def app() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        guarded(app)


def _report(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> str:
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, force_terminal=terminal, width=100))
    with progress.progress_bar() as report:
        for stage in ("pretrain", "finetune"):
            for step in range(1, 101):
                report(step, 100, f"{stage}: loss {step / 100:.2f} [x]")
    return out.getvalue()


def test_without_a_terminal_progress_is_a_line_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _report(monkeypatch, terminal=False).splitlines()
    assert lines[0] == "pretrain: loss 0.01 [x] [1/100]"
    assert [line for line in lines if line.startswith("pretrain")][-1] == "pretrain: loss 1.00 [x] [100/100]"
    assert len(lines) == 2 * 11


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stage_that_knows_its_time_left_says_it(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, force_terminal=terminal, width=100))
    with progress.progress_bar() as report:
        report(1, 100, "pretrain: loss 1", 3725.4)
    assert "1:02:05" in out.getvalue()


def test_on_a_terminal_every_stage_has_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _report(monkeypatch, terminal=True)
    assert "100/100" in text
    assert "pretrain: loss 1.00" in text
    assert "finetune: loss 1.00" in text

"""What the command lines share: bad input is one line and exit code 2, a stop says how to go on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from ecgmeta.runtime.errors import Diverged, InputError


def guarded(app: Callable[[], object]) -> None:
    """Run a command line; exit code 2 for bad input, 1 for numbers that broke, 130 for Ctrl-C, 0 for SIGTERM in a run,
    which a scheduler sends before it takes the machine away."""
    from ecgmeta.runtime.signals import Stopped

    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except Diverged as error:
        _fail(f"stopped: {error}", 1)
    except FloatingPointError as error:
        _fail(f"stopped: {error}. The last checkpoint stands; try a smaller learning rate.", 1)
    except Stopped as stop:
        print(f"{stop}: {stop.stands}", file=sys.stderr)
        raise SystemExit(0 if stop.number == signal.SIGTERM else 130) from None
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as leaving:
        if leaving.code == 130:  # how typer passes Ctrl-C on, without a word
            _interrupted()
        raise
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}", 2)


def _interrupted() -> None:
    _fail("interrupted. The same command goes on from the last checkpoint.", 130)


def _fail(line: str, code: int) -> None:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)

"""What bad input raises, in every package above and beside the engine, and what numbers that broke raise."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from the user: a file, a configuration value, an array.

    The message is always one line, ``where: field: found X, expected Y``; the command lines print it as it is
    and exit with code 2.

    Args:
        where: the file, record or configuration that is wrong.
        field: which part of it.
        found: what stands there.
        expected: what should stand there, or what to do.
    """

    def __init__(self, where: object, field: str, found: object, expected: object) -> None:
        self.where, self.field, self.found, self.expected = where, field, found, expected
        message = f"{where}: {field}: found {found}, expected {expected}"
        super().__init__(" ".join(message.split()))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        """By its four parts, as text: what is raised in another process arrives as it is."""
        return type(self), (str(self.where), self.field, str(self.found), str(self.expected))


class Diverged(FloatingPointError):
    """Training broke in its numbers. The message is a sentence that names the step, what stands, and what to try; the command
    lines print it and exit with code 1."""

"""Errors that are meant to be read by a person: one line, what is wrong and what to do."""


class FreqFormerError(Exception):
    """Wrong use or unusable input; the command line prints its one line and exits with code 2."""

    exit_code = 2


class CheckFailed(FreqFormerError):
    """What was made is not what it should be; it is kept to be looked at, and the exit code is 1."""

    exit_code = 1


class RunFailed(FreqFormerError):
    """A run ended by what happened to it, not by how it was called; the exit code is 1."""

    exit_code = 1


class MissingExtra(FreqFormerError):
    """An optional dependency is absent; the message names the extra that installs it."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed: pip install 'freqformer[{extra}]'")


class SaidElsewhere(Exception):
    """Another process of this run has said what is wrong; this one only ends, with the same exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run has said what is wrong")
        self.exit_code = exit_code

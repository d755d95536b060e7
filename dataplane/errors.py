"""Every failure that an operator can meet, and the exit code it ends a command with (contract section 1)."""


class DataplaneError(Exception):
    """A failure with a clear reason; the command that meets it ends with `exit_code`."""

    exit_code = 1


class UsageError(DataplaneError):
    """The words of a command make no sense together."""

    exit_code = 2


class ConfigError(DataplaneError):
    """A configuration that may not be loaded; `problems` holds one `FILE:LINE: PATH: message` each."""

    exit_code = 3

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Unreachable(DataplaneError):
    """No daemon answers on the control socket."""

    exit_code = 4

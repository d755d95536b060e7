"""A program on a real pseudo-terminal, and what an operator sees and types there."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parent.parent
COLUMNS, LINES = 100, 24
PATIENCE = 10.0  # seconds until what must appear has appeared
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """The program's screen is everything that it has written, without colours and cursor movements."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=ROOT, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self._raw = ""  # since the last thing that was typed
        self._seen = 0  # of the screen

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self.hangs_up()

    def hangs_up(self) -> None:
        """The operator's window is closed."""
        if self._master >= 0:
            os.close(self._master)
        self._master = -1

    @property
    def screen(self) -> str:
        """What was written since the last thing that was typed."""
        return CONTROL.sub("", self._raw)

    def types(self, text: str) -> "Terminal":
        """Press these keys; what was seen before is forgotten."""
        self._raw, self._seen = "", 0
        os.write(self._master, text.encode(errors="surrogateescape"))
        return self

    def sees(self, text: str) -> "Terminal":
        """Wait until this is on the screen, below what was seen before."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.screen.find(text, self._seen)) < 0:
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{text!r} did not appear:\n{self.screen}")
        self._seen = found + len(text)
        return self

    def ends(self) -> int:
        """The exit code, once there is one."""
        while self._read(PATIENCE):
            pass
        return self.process.wait(PATIENCE)

    def _read(self, seconds: float) -> bool:
        """False when nothing more came in time, or can come."""
        if seconds <= 0 or not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the program has left
            return False
        self._raw += data.decode(errors="replace")
        return bool(data)

"""A terminal, for programs that behave otherwise in one."""

import fcntl
import os
import pty
import subprocess
import termios
import threading


class Terminal:
    """A program in a terminal of its own, which `close` closes under it."""

    def __init__(self, *command: str, environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.shown = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 4096):
                self.shown += data.decode(errors="replace")
        except OSError:  # the last program at the terminal has ended
            pass

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        self._reader.join(10)
        os.close(self._master)

"""TODO."""

import contextlib
import os
import signal
import threading
import time

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a scheduler that wants the machine back, a closed terminal
ECHO_SECONDS = 5  # within which a launcher and its scheduler pass on one and the same signal


class Interrupted(Exception):
    """A signal asks to stop; `number` is the signal's."""

    def __init__(self, number):
        super().__init__(f"signal {number}")
        self.number = number


class StopSignals:
    """Takes the first signal to stop as a request, in `received`; the second ends the process wherever it is.

    With several processes, launchers and schedulers pass the same signal on to each other: what comes within
    `ECHO_SECONDS` counts as one. A signal that is ignored, as SIGHUP under nohup, stays so.
    """

    def __init__(self, job):
        self.job = job
        self.received = 0
        self.received_at = 0.0
        self.handlers = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python handles signals there alone
            numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
            handlers = {number: signal.getsignal(number) for number in numbers}
            self.handlers = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
            for number in self.handlers:
                signal.signal(number, self.handle)
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def handle(self, number, _):
        is_echo = self.job.size > 1 and time.monotonic() < self.received_at + ECHO_SECONDS
        if self.received and is_echo:
            return
        is_second, self.received, self.received_at = bool(self.received), number, time.monotonic()
        if is_second:
            raise SystemExit(128 + number)
        if self.job.is_first:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nstopping after this step; a second signal stops at once\n")

"""Signals that stop training: Ctrl-C, a scheduler's SIGTERM, a closed terminal."""

import contextlib
import os
import signal
import threading
import time

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
ECHO_SECONDS = 5  # a launcher and its scheduler forward the same signal within this time


class Interrupted(Exception):
    """Signal `signal_number` has requested a stop."""

    def __init__(self, signal_number):
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


class StopSignals:
    """Records the first stop signal in `received`, which training checks between steps; a second one ends the process.

    With several ranks, launchers and schedulers forward the same signal to each other, so signals within
    `ECHO_SECONDS` count as one. A signal that was ignored before, as SIGHUP is under nohup, stays ignored.
    """

    def __init__(self, job):
        self.job = job
        self.received = 0
        self.received_at = 0.0
        self.handlers = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
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
        if self.job.is_rank0:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, b"\nstopping after this step; a second signal stops at once\n")

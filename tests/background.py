"""train.py in background processes that tests can signal, kill and starve of resources.

The processes are forked from a server that has already imported everything and drawn the images (preloaded.py), so
they start at once. They draw no curves.

process = start(flags, log)               # one process; its output goes to the file `log`
processes = start_job(flags, folder)      # one per rank, as torchrun would start them
status = end(process)                     # wait until it ends
"""

import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing import forkserver

import pytest
from helpers import PYTHON_ENVIRONMENT

import train

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded"])


def new_process(function, *arguments):
    """A process, not yet started, that will call a function of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHON_ENVIRONMENT["PYTHONPATH"])  # the server does not look elsewhere
        forkserver.ensure_running()
    return CONTEXT.Process(target=function, args=arguments, daemon=True)


def start(flags, log, environment=(), setup=None):
    """Start `train.py FLAGS` with its output in the file `log`.

    Args:
        setup: a function of a module, which the new process calls first.
    """
    process = new_process(_train, flags, str(log), dict(environment), setup)
    process.start()
    return process


def start_job(flags, folder, size=2, setup=None):
    """Start `train.py FLAGS` in `size` processes, as torchrun would. Rank 0 writes to `folder`/0.log, and so on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared["TORCHELASTIC_RUN_ID"] = "test"
    processes = []
    for rank in range(size):
        environment = {key: str(value) for key, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        processes.append(start(flags, folder / f"{rank}.log", environment, setup))
    return processes


def end(process, seconds=120):
    """Wait for a process to end and return its exit status. Raise `TimeoutError` if it takes longer."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"the process is still running after {seconds} s")
    return process.exitcode


def _train(flags, log, environment, setup):
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # `nohup ... &` ignores both signals, and children inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if setup:
        setup()
    try:
        train.main(flags)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()

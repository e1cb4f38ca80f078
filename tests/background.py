"""train.py in processes of their own, which tests can stop, kill and starve.

They are forked from one that has imported everything, so they start at once.
"""

import multiprocessing
import os
import signal
import socket
import sys

import torch

import train

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train"])


def _train(flags, log, environment, setup):
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run under nohup, they are ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if setup:
        setup()
    try:
        train.main(flags)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def start(flags, log, environment=(), setup=None):
    """Start `train.py FLAGS`, its output in the file `log`; `setup()`, a function of a module, is called before."""
    process = CONTEXT.Process(target=_train, args=(flags, str(log), dict(environment), setup), daemon=True)
    process.start()
    return process


def start_job(flags, folder, size=2, setup=None):
    """Start `train.py FLAGS` as torchrun would: `size` processes, their output in `folder`/0.log and so on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    same = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    same["TORCHELASTIC_RUN_ID"] = "test"
    processes = []
    for rank in range(size):
        environment = {key: str(value) for key, value in {**same, "RANK": rank, "LOCAL_RANK": rank}.items()}
        processes.append(start(flags, folder / f"{rank}.log", environment, setup))
    return processes


def end(process, seconds=120):
    """Wait for a process to end and return its exit status; a hang is an error."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"still at work after {seconds} s")
    return process.exitcode

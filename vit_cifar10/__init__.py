"""The code behind train.py, test.py, compare.py and convert.py. The networks themselves are in model.py."""

import atexit
import gc
import signal
import sys


def end_on_ctrl_c():
    """Make Ctrl-C end the process at once and silently, until `utils.cli.command` handles it.

    The scripts call this before they import PyTorch, which takes seconds. Python would print a traceback, or PyTorch
    would take the interruption for an error of its own.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored, as in a shell's background
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_quickly():
    """Skip the search for unused objects at the end of the process, which takes about half a second after PyTorch.

    The system frees the memory anyway. Only test.py calls this, and it does nothing if Triton is in use, as in training
    runs: Triton would report the objects that are left as leaks.
    """
    atexit.register(lambda: "triton" in sys.modules or gc.freeze())

"""The code behind train.py, test.py and compare.py. The networks themselves are in model.py.

Importing this package makes Ctrl-C silent: an uncaught KeyboardInterrupt still ends the program, with the status of an
interrupted one (130 in a shell), but without a traceback. The commands import it first, because importing PyTorch takes
seconds, in which `utils.cli.command` is not there yet.
"""

import sys


def _without_interrupts(report):
    """A `sys.excepthook` that passes all exceptions to `report`, except for KeyboardInterrupt."""

    def report_others(kind, error, trace):
        if not issubclass(kind, KeyboardInterrupt):
            report(kind, error, trace)

    return report_others


sys.excepthook = _without_interrupts(sys.excepthook)

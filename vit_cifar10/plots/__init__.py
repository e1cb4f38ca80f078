"""Pictures, from plain arrays. They are drawn without a display; only `gif.show` needs a backend that has windows."""

import os
import sys

if os.environ.get("MPLBACKEND") and "matplotlib" not in sys.modules:
    backend = os.environ.pop("MPLBACKEND")  # matplotlib could not be imported if it is not installed
    import matplotlib

    try:
        matplotlib.rcParams["backend"] = backend
    except ValueError:  # such as the one of a notebook, in another environment that the notebook calls
        matplotlib.rcParams["backend"] = backend = "agg"
    os.environ["MPLBACKEND"] = backend

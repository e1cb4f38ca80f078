"""Errors that a user can act on."""

import contextlib
import re


class UserError(Exception):
    """A mistake that the user can fix. The message is one line: what is wrong and what to do."""


class LocalError(UserError):
    """An error on one rank only; that rank prints it. Other errors occur on all ranks and rank 0 prints them."""


@contextlib.contextmanager
def out_of_memory_advice(advice):
    """Turn an out-of-memory error on any device into a `LocalError` that ends with `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch's OutOfMemoryError is a RuntimeError
        if not (isinstance(error, MemoryError) or re.search(r"out of memory|allocate memory", str(error), re.I)):
            raise
        raise LocalError(f"out of memory; {advice}") from error

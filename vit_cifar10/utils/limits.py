"""Upper bounds of the numbers that flags and checkpoints may contain.

All are far above any useful value. A larger number is a mistake, and would only fail later and less clearly.
"""

LARGEST_DEPTH = 1_000  # layers
LARGEST_SIZE = 100_000  # widths, heads, patch sizes, classes
LARGEST_IMAGE = 10_000  # side of the images in pixels
LARGEST_RATIO = 100  # hidden width of a block's MLP, relative to the width of its tokens
LARGEST_COUNT = 2**31 - 1  # images and batch sizes
LARGEST_EPOCHS = 1_000_000
LARGEST_WORKERS = 256  # processes
LARGEST_RATE = 1e6  # learning rates, decays, norms, the alphas of Mixup and CutMix

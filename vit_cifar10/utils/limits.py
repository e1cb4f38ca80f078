"""Bounds of the numbers that flags and checkpoints may contain.

No useful value comes near these bounds. A number beyond them is a mistake, and is refused before it fails later with an
unclear error.
"""

LARGEST_DEPTH = 1_000  # layers
LARGEST_SIZE = 100_000  # widths, heads, patch sizes, classes
LARGEST_IMAGE = 10_000  # side of the images in pixels
LARGEST_REGISTERS = 1_000  # learned tokens other than the class token
LARGEST_RATIO = 100  # hidden width of a block's MLP, relative to the width of its tokens
LARGEST_COUNT = 2**31 - 1  # images and batch sizes
LARGEST_EPOCHS = 50_000  # a checkpoint with more rows of metrics would be refused as too large
MOST_COLUMNS = 100  # of metrics.csv
MOST_CELLS = 1_500_000  # of metrics.csv
LONGEST_PATH = 5_000  # characters
LARGEST_SAMPLES = 100_000  # random masks of an image
LARGEST_STEP = 10**15
LARGEST_SEED = 2**31
LARGEST_WORKERS = 256  # processes
LARGEST_RATE = 1e6  # learning rates, decays, norms, the alphas of Mixup and CutMix
SMALLEST_ALPHA = 1e-9  # with smaller ones, the Beta distribution gives nan

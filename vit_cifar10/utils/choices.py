"""The values that flags offer and the code implements, in one place that imports nothing.

The parsers and the code both import them, so that --help need not wait for PyTorch.
"""

OPTIMIZERS = ("adamw", "muon", "muon-sgd")
BORDERS = ("black", "reflect")  # around an image before its random crop
FLIPS = ("random", "alternating")  # mirror images of training images
RESIZES = {  # how an image that is not square becomes square
    "crop": "cut off the longer sides and keep the central square",
    "squash": "distort the image",
    "pad": "keep the whole image, with black bars",
}
RESIZE_HELP = "what is done to images of your own that are not square; " + "; ".join(map(": ".join, RESIZES.items()))
CLASS_WEIGHTS = ("none", "balanced")  # in the training loss
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
TRACKERS = ("none", "tensorboard", "wandb")  # each one except "none" is also the name of the package that it needs
HEAD_FUSIONS = ("mean", "max", "min")
HEAD_SCALES = ("image", "own")
PATCH_LEVELS = 8  # different fractions of the patches to train on; a compiled network is compiled once for each
SAMPLES = 512  # the default number of random masks per image

"""TODO."""

import itertools
import textwrap
import warnings

import matplotlib
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D

from vit_cifar10.utils.files import replacing

matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of a file or a class is a $
warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box in its place says as much

COLORS = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73"}
NAMES = {"train": "training", "val": "validation", "test": "test"}
METHOD_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#D55E00")
GREY = "#555555"
COLORMAP = "viridis"
PERCENT = PowerNorm(0.5, vmin=0, vmax=100)  # a square root's scale, on which small shares can be told apart


def shorten(name, longest=40):
    """A name that fits on a line, its middle cut out."""
    return name if len(name) <= longest else f"{name[: longest // 2]}…{name[-(longest // 2) :]}"


def set_title(figure, title):
    """The title of a whole picture, in as many lines as it takes."""
    figure.suptitle(textwrap.fill(title, int(9 * figure.get_figwidth())))


def save_figure(figure, path, dpi=100):
    """Write a matplotlib figure as PNG."""
    with replacing(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")


def add_legend(figure, names, title=None):
    """The colour and marker of each curve and its name below a figure, in as many columns as there is room for."""
    handles = [
        Line2D([], [], color=color, marker=marker, label=name)
        for name, (color, marker) in zip(names, line_styles(), strict=False)
    ]
    room = 10 * figure.get_figwidth() / (max(map(len, names)) + 10)  # about ten letters an inch
    columns = min(3, max(1, int(room)), len(names))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=title)


def line_styles():
    """Colours and markers without end, told apart by either."""
    return zip(itertools.cycle(METHOD_COLORS), itertools.cycle("osD^vPX*"), strict=False)

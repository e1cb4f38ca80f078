"""Colors, line styles and helpers that all pictures share.

Color-blind readers can tell the line colors and color maps apart: lines use the palette of Okabe and Ito
(https://jfly.uni-koeln.de/color/), maps use viridis. Pictures are written atomically.
"""

import itertools
import textwrap
import warnings

import matplotlib
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.lines import Line2D
from PIL import Image

from vit_cifar10.utils.files import atomic_write
from vit_cifar10.utils.text import printable

matplotlib.rcParams["text.parse_math"] = False  # names of files and classes may contain a $
warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the picture shows a box instead

LINE_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#D55E00")
MARKERS = "osD^vPX*"
GRAY = "#555555"
COLORMAP = "viridis"
PERCENT = PowerNorm(0.5, vmin=0, vmax=100)  # a square root, so that small percentages remain distinguishable
SIGNED_COLORMAP = "RdBu_r"  # red for positive values, blue for negative ones
SIGNED_PERCENT = Normalize(vmin=-100, vmax=100)


def set_title(figure, title):
    """Set the title of a whole figure. Its lines are wrapped to the figure's width."""
    width = int(9 * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(printable(line), width) for line in title.split("\n")))


def add_legend(figure, names, title=None):
    """Add a legend below the figure with the color and marker of each named curve, in as many columns as fit."""
    names = list(map(printable, names))
    handles = [
        Line2D([], [], color=color, marker=marker, label=name)
        for name, (color, marker) in zip(names, line_styles(), strict=False)
    ]
    room = 10 * figure.get_figwidth() / (max(map(len, names)) + 10)  # an inch holds about ten characters
    columns = min(3, max(1, int(room)), len(names))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=title)


def line_styles():
    """An endless sequence of (color, marker). Either one alone tells neighboring curves apart."""
    return zip(itertools.cycle(LINE_COLORS), itertools.cycle(MARKERS), strict=False)


def save_figure(figure, path, dpi=100):
    """Write a matplotlib figure to a PNG file."""
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=dpi, format="png")


def save_pixels(pixels, path, dpi=100):
    """Write a picture, uint8 (H, W, 3), to a PNG file."""
    with atomic_write(path) as partial:
        Image.fromarray(pixels).save(partial, format="png", dpi=(dpi, dpi))

"""Image files: any image file as a uint8 tensor, and folders of images, one sub-folder per class."""

import functools
import multiprocessing
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from vit_cifar10.utils.cli import printable
from vit_cifar10.utils.errors import UserError

FORMATS = (  # pictures alone: Pillow also reads PostScript, which is a program, and guesses at much else
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)


MOST_PIXELS = 100_000_000  # of an image file, some 400 MB decoded: more than cameras make, less than a trap would take


def open_image(path, image_size):
    """Any image file as uint8 (3, image_size, image_size), RGB.

    Rotated as its EXIF says, its transparency laid over white, the first frame of an animation; the centre square is
    resized with antialiasing. `read_image` gives it before the last step.

    Raises:
        UserError: there is no such file, or it is not an image that can be read.
    """
    square = ImageOps.fit(read_image(path), (image_size, image_size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def read_image(path):
    """Any image file as an upright PIL image in RGB. Raises `UserError` as `open_image` does."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not an image; name one image file")
    if not path.exists():
        raise UserError(f"there is no image {path}; check the path")
    if not path.is_file():  # a pipe could keep one waiting for ever
        raise UserError(f"{path} is no ordinary file; name an image file")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata; what cannot be read raises
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"its {image.width} x {image.height} pixels are too many")
                return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
        raise UserError(f"{path} cannot be read as an image ({error}); try to save it again as PNG or JPEG") from error


def _to_rgb(image):
    if image.mode.startswith("I"):  # 16-bit greys
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    elif image.mode == "F":  # floats, either in [0, 1] or in [0, 255]
        values = np.nan_to_num(np.asarray(image))
        scale = 255 if values.max() <= 1 else 1
        image = Image.fromarray((values * scale).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def list_images(folder, root):
    """{class: its files}: every folder in `folder` is a class, every file in it an image.

    What cannot be used is named: a class without images, folders that cannot be read, links out of `root`.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; --data_path takes a folder with one sub-folder a class")
    by_class = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith(".") and _stays_inside(entry, root):
            by_class[entry.name] = _list_files(entry, root)
            if not by_class[entry.name]:
                report_skipped(f"the class folder {entry} holds no files")
    filled = sum(map(bool, by_class.values()))
    if filled < 2:
        raise UserError(
            f"{folder} has {filled} class folders with images, at least 2 are needed: one sub-folder of images a class"
        )
    return by_class


def _list_files(folder, root):
    """The files in a folder and those below it, sorted."""
    files = []
    for place, folders, names in os.walk(
        folder, onerror=lambda error: report_skipped(f"{error.filename}: {error.strerror}")
    ):
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                report_skipped(f"{os.path.join(place, name)} is a link to a folder")
        paths = (os.path.join(place, name) for name in names if not name.startswith("."))
        files += [path for path in paths if _stays_inside(path, root)]
    return sorted(files)


def _stays_inside(path, root):
    """Whether a path is what lies in `root`, and no link to something elsewhere."""
    if not os.path.islink(path):
        return True
    is_inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    if not is_inside:
        report_skipped(f"{path} is a link that leads out of {root}; put the image itself there")
    return is_inside


@functools.cache
def report_skipped(reason):
    """Say what is left out, once: training and test images are listed apart."""
    print(f"skipped: {printable(' '.join(reason.split()))}", file=sys.stderr)


def flatten(by_class):
    """All files, and their labels."""
    files = [file for members in by_class.values() for file in members]
    return files, [label for label, members in enumerate(by_class.values()) for _ in members]


def decode_images(files, image_size, num_workers):
    """The files' images in order, by several processes if they are many; the reason in place of one that cannot be."""
    decode = functools.partial(_decode_one, image_size=image_size)
    if num_workers < 2 or len(files) < 200:
        yield from map(decode, files)
        return
    with multiprocessing.get_context("spawn").Pool(num_workers, _ignore_interrupts) as pool:
        yield from pool.imap(decode, files, chunksize=32)


def _ignore_interrupts():
    """Ctrl-C is for the process that waits for these, and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _decode_one(file, image_size):
    try:
        return open_image(file, image_size).numpy()
    except UserError as error:
        return str(error)

"""Image files: read any image file as a uint8 tensor, and find and decode the images in a folder.

    image = open_image("cat.jpg", 32)                           # uint8 (3, 32, 32)
    by_class = list_images(folder, root)                        # {"cat": [path, ...], "dog": [path, ...]}
    files, labels = files_and_labels(by_class)
    for image in decode_images(files, 32, num_workers=2):       # uint8 (3, 32, 32), or an error message
        ...

Untrusted files are safe to read: only image formats are decoded, images of too many pixels are refused, and links that
lead out of the folder are skipped.
"""

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

FORMATS = (  # common image formats only: Pillow also reads many rare formats, and PostScript, which can run programs
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
MAX_PIXELS = 100_000_000  # about 400 MB when decoded: more than a camera's image, less than a decompression bomb


# One image file


def open_image(path, image_size):
    """Read any image file, crop it to the square at its center, and resize it with antialiasing.

    See `read_image` for rotation, transparency and animations.

    Returns:
        uint8 (3, image_size, image_size), RGB.

    Raises:
        UserError: there is no such file, or it cannot be read as an image.
    """
    square = ImageOps.fit(read_image(path), (image_size, image_size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def read_image(path):
    """Read any image file as a PIL image in RGB, in its original size.

    The image is rotated as its EXIF data specifies, and transparent parts are blended with white. Only the first frame
    of an animation is read.

    Raises:
        UserError: there is no such file, or it cannot be read as an image.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not an image; give the path of an image file")
    if not path.exists():
        raise UserError(f"there is no image {path}; check the path")
    if not path.is_file():  # reading from a pipe could wait forever
        raise UserError(f"{path} is not a regular file; give the path of an image file")
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warnings are about unusual metadata; real problems raise an error
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
                return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # for a damaged file, Pillow's decoders raise errors of many types
        raise UserError(f"{path} cannot be read as an image ({error}); try saving it again as PNG or JPEG") from error


def _to_rgb(image):
    """Convert a PIL image of any mode to 8-bit RGB, blending transparent parts with white."""
    if image.mode.startswith("I"):  # 16-bit gray
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    elif image.mode == "F":  # floating-point gray, in [0, 1] or [0, 255]
        values = np.nan_to_num(np.asarray(image))
        scale = 255 if values.max() <= 1 else 1
        image = Image.fromarray((values * scale).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


# Folders of images


def list_images(folder, root):
    """List the files of each class: {name of a sub-folder of `folder`: sorted paths of the files in it}.

    Folders that cannot be read, links to folders within a class, and links that lead out of `root` are skipped and
    reported on standard error. Hidden files and folders are skipped silently. A class without files is kept, but
    reported.

    Raises:
        UserError: there is no such folder, or fewer than two of its sub-folders contain files.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; set --data_path to a folder with one sub-folder per class")
    by_class = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith(".") and _stays_inside(entry, root):
            by_class[entry.name] = _list_files(entry, root)
            if not by_class[entry.name]:
                report_skipped(f"the class folder {entry} has no files")
    filled = sum(map(bool, by_class.values()))
    if filled < 2:
        raise UserError(
            f"{folder} has {filled} class folders with images, but needs at least 2; add a sub-folder per class"
        )
    return by_class


def files_and_labels(by_class):
    """The files of all classes in one list, and a list of their labels. Labels number the classes from 0."""
    files = [file for members in by_class.values() for file in members]
    return files, [label for label, members in enumerate(by_class.values()) for _ in members]


def decode_images(files, image_size, num_workers):
    """Yield each file's image in order: a NumPy array, uint8 (3, image_size, image_size), or an error message.

    With 200 files or more, `num_workers` processes decode them.
    """
    decode = functools.partial(_decode_or_explain, image_size=image_size)
    if num_workers < 2 or len(files) < 200:
        yield from map(decode, files)
        return
    with multiprocessing.get_context("spawn").Pool(num_workers, _ignore_interrupts) as pool:
        yield from pool.imap(decode, files, chunksize=32)


@functools.cache  # reports everything once, although training and test images are listed separately
def report_skipped(reason):
    """Report on standard error, in one line, what is skipped and why."""
    print(f"skipped: {printable(' '.join(reason.split()))}", file=sys.stderr)


def _list_files(folder, root):
    """The files in a folder and in all folders below it, sorted."""

    def report_unreadable(error):
        report_skipped(f"{error.filename} cannot be read ({error.strerror})")

    files = []
    for parent, folders, names in os.walk(folder, onerror=report_unreadable):
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                report_skipped(f"{os.path.join(parent, name)} is a link to a folder")
        paths = (os.path.join(parent, name) for name in names if not name.startswith("."))
        files += [path for path in paths if _stays_inside(path, root)]
    return sorted(files)


def _stays_inside(path, root):
    """Whether a path stays inside `root` when links are followed. A link that leads out is reported."""
    if not os.path.islink(path):
        return True
    is_inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    if not is_inside:
        report_skipped(f"{path} is a link that leads out of {root}; replace it with a copy of its target")
    return is_inside


def _decode_or_explain(file, image_size):
    try:
        return open_image(file, image_size).numpy()
    except UserError as error:
        return str(error)


def _ignore_interrupts():
    """In a worker process, leave Ctrl-C to the main process, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""Read image files as uint8 tensors.

    image = open_image("cat.jpg", 32)                           # uint8 (3, 32, 32)
    for image, texts in decode_images(files, 32, num_workers=2): # uint8 (3, 32, 32) and notes, or None and an error
        ...

Untrusted files are safe to read: only image formats are decoded, and images of too many pixels are refused.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from vit_cifar10.data.image_files import check_image_file
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.text import one_line

FORMATS = (  # common image formats only: Pillow also reads many rare formats, and PostScript, which can run programs
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
MAX_PIXELS = 100_000_000  # about 400 MB when decoded: more than a camera's image, less than a decompression bomb
BYTE, DEPTHS = 255, (8, 10, 12, 14, 16, 32)  # bits of a gray value
MAX_PROCESSES = 61  # Windows allows no more
FILES_PER_PROCESS = 100  # a process that decodes fewer files takes longer to start than it saves


# One image file


def open_image(path, image_size, resize="crop", prints_notes=True):
    """Read any image file, and make it a square of this size as `resize`, one of `RESIZES`, says; see `fit_square`.

    See `read_image` for rotation, transparency and animations. With `prints_notes`, notes are printed on
    standard error.

    Returns:
        uint8 (3, image_size, image_size), RGB.

    Raises:
        UserError: there is no such file, or it cannot be read as an image.
    """
    pixels, notes = _open(path, image_size, resize)
    for note in notes if prints_notes else ():
        print(one_line(f"note: {path}: {note}"), file=sys.stderr)
    return torch.from_numpy(pixels)


def _open(path, image_size, resize):
    """An image as from `open_image`, as a NumPy array, and notes on what was done to it."""
    image, note = _read(path)
    notes = [note] if note else []
    if resize == "crop" and image.width != image.height:
        notes.append("cut to the square at the center; --resize squash or pad keeps the rest")
    square = fit_square(image, image_size, resize)
    return np.ascontiguousarray(np.array(square).transpose(2, 0, 1)), notes


def fit_square(image, image_size, resize="crop"):
    """An RGB image of PIL as a square, resized with antialiasing.

    `resize`: "crop" takes the square at its center, "squash" changes its proportions, "pad" adds black bars.
    """
    square, bicubic = (image_size, image_size), Image.Resampling.BICUBIC
    if resize == "crop":
        return ImageOps.fit(image, square, bicubic)
    if resize == "squash":
        return image.resize(square, bicubic)
    width, height = (max(1, round(side * image_size / max(image.size))) for side in image.size)
    padded = Image.new("RGB", square)
    padded.paste(image.resize((width, height), bicubic), ((image_size - width) // 2, (image_size - height) // 2))
    return padded


def image_transform(image_size, mean, std, resize="crop"):
    """A torchvision transform from a PIL image to a normalized batch, float (1, 3, image_size, image_size).

    For an image file, it gives what a network sees of the tensor from `open_image`.
    """
    from torchvision import transforms  # only here because the import takes seconds

    to_square = functools.partial(_to_square, image_size=image_size, resize=resize)
    to_batch = functools.partial(torch.unsqueeze, dim=0)
    return transforms.Compose([to_square, transforms.ToTensor(), transforms.Normalize(mean, std), to_batch])


def _to_square(image, image_size, resize):
    """A PIL image as `open_image` reads it from a file: a PIL image."""
    image = image.copy()
    _rotate_in_place(image)
    return fit_square(_to_rgb(_to_8_bits(image)[0]), image_size, resize)


def read_image(path):
    """Read any image file as a PIL image in RGB, in its original size.

    The image is rotated as its EXIF data specifies; damaged EXIF data is ignored. Transparent parts are blended with
    white. Only the first frame of an animation is read.

    Raises:
        UserError: there is no such file, or it cannot be read as an image.
    """
    return _read(path)[0]


def _read(path):
    """An image as from `read_image`, and the note from `_to_8_bits`."""
    path = Path(path)
    check_image_file(path)
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warnings are about unusual metadata; real problems raise an error
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                if image.width * image.height > MAX_PIXELS:  # only JPEG can be decoded to a smaller size
                    image.draft(None, (image.width // 2, image.height // 2))
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"it has {image.width} x {image.height} pixels")
                image.load()
                _rotate_in_place(image)
                in_8_bits, note = _to_8_bits(image)
                return _to_rgb(in_8_bits), note
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} cannot be read as an image ({error}); save it with fewer than {MAX_PIXELS:,} pixels"
        ) from error
    except Exception as error:  # for a damaged file, Pillow's decoders raise errors of many types
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}); try saving it again as PNG or JPEG") from error


def _rotate_in_place(image):
    """Rotate a loaded PIL image as its EXIF data specifies. If the data is damaged, use as much of it as possible.

    Pillow rotates the image as soon as it has read the orientation. It then writes the EXIF data again, which can also
    fail, but no longer matters.
    """
    with contextlib.suppress(Exception):  # for damaged data, Pillow raises errors of many types
        ImageOps.exif_transpose(image, in_place=True)


def _to_8_bits(image):
    """Scale an image of more than 8 bits or of floats, which is gray, to 8 bits; leave others as they are.

    Whole numbers of at most 10, 12, 14 ... bits are scaled by the range of so many bits. Floats in [0, 1] or [0, 255]
    are scaled by this range. Anything else, such as negative numbers, is scaled by the image's own range.

    Returns:
        The image, and a note on what was done; None if it was what the format says.
    """
    if not image.mode.startswith(("I", "F")):
        return image, None
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and (tags.get(258), tags.get(339, (1,))) == ((32,), (1,)):  # TIFF: 32 bits, without a sign
        values = values.view(np.uint32)
    is_float = image.mode == "F"
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    if low >= 0 and is_float and high <= BYTE:
        low, high, note = 0.0, 1.0 if high <= 1 else BYTE, None
    elif low >= 0 and not is_float:
        bits = next(bits for bits in DEPTHS if high < 2**bits)
        low, high, note = 0.0, 2**bits - 1, None if bits == 16 else f"gray values of {bits} bits are scaled to 8 bits"
    else:
        note = f"gray values from {low:g} to {high:g}, their own range, are scaled to 8 bits"
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    scaled = (values - low) * (BYTE / (high - low if high > low else 1))
    return Image.fromarray(scaled.clip(0, BYTE).round().astype(np.uint8)), note


def _to_rgb(image):
    """Convert an 8-bit PIL image of any mode to RGB, blending transparent parts with white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


# Many image files


def decode_images(files, image_size, num_workers, resize="crop"):
    """Yield each file's image in order: a NumPy array, uint8 (3, image_size, image_size), and a list of notes on it.

    For a file that cannot be read as an image, these are None and an error message. For `resize`, see `fit_square`.

    Up to `num_workers` processes decode them: at most one per processor, and one per `FILES_PER_PROCESS` files.

    Raises:
        UserError: a process has died.
    """
    decode = functools.partial(_decode_or_explain, image_size=image_size, resize=resize)
    processes = min(num_workers, len(files) // FILES_PER_PROCESS, os.cpu_count() or 1, MAX_PROCESSES)
    if processes < 2:
        yield from map(decode, files)
        return
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _prepare_process)
    try:
        yield from executor.map(decode, files, chunksize=8)  # after Ctrl-C, chunks that have started are finished
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes images has died, perhaps because memory ran out; lower --num_workers"
            " (with 0, the main process decodes the images)"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _decode_or_explain(file, image_size, resize):
    try:
        return _open(file, image_size, resize)
    except UserError as error:
        return None, str(error)


def _prepare_process():
    """Make a process that decodes images ignore Ctrl-C, which the main process handles, and end with the main process.

    Without the thread, the process would wait for work forever after the main process was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)

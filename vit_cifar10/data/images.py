"""Read image files as uint8 tensors.

    image = open_image("cat.jpg", 32)                           # uint8 (3, 32, 32)
    for image in decode_images(files, 32, num_workers=2):       # uint8 (3, 32, 32), or an error message
        ...

Untrusted files are safe to read: only image formats are decoded, and images of too many pixels are refused.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
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

FORMATS = (  # common image formats only: Pillow also reads many rare formats, and PostScript, which can run programs
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
)
MAX_PIXELS = 100_000_000  # about 400 MB when decoded: more than a camera's image, less than a decompression bomb
MAX_PROCESSES = 61  # Windows allows no more
FILES_PER_PROCESS = 100  # a process that decodes fewer files takes longer to start than it saves


# One image file


def open_image(path, image_size):
    """Read any image file, crop it to the square at its center, and resize it with antialiasing.

    See `read_image` for rotation, transparency and animations.

    Returns:
        uint8 (3, image_size, image_size), RGB.

    Raises:
        UserError: there is no such file, or it cannot be read as an image.
    """
    return torch.from_numpy(np.array(fit_square(read_image(path), image_size))).permute(2, 0, 1).contiguous()


def fit_square(image, image_size):
    """The square at the center of a PIL image, resized with antialiasing: a PIL image."""
    return ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)


def image_transform(image_size, mean, std):
    """A torchvision transform from a PIL image to a normalized batch, float (1, 3, image_size, image_size).

    For an image file, it gives what a network sees of the tensor from `open_image`.
    """
    from torchvision import transforms  # only here because the import takes seconds

    to_square = functools.partial(_to_square, image_size=image_size)
    to_batch = functools.partial(torch.unsqueeze, dim=0)
    return transforms.Compose([to_square, transforms.ToTensor(), transforms.Normalize(mean, std), to_batch])


def _to_square(image, image_size):
    """A PIL image as `open_image` reads it from a file: a PIL image."""
    image = image.copy()
    _rotate_in_place(image)
    return fit_square(_to_rgb(image), image_size)


def read_image(path):
    """Read any image file as a PIL image in RGB, in its original size.

    The image is rotated as its EXIF data specifies; damaged EXIF data is ignored. Transparent parts are blended with
    white. Only the first frame of an animation is read.

    Raises:
        UserError: there is no such file, or it cannot be read as an image.
    """
    path = Path(path)
    check_image_file(path)
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warnings are about unusual metadata; real problems raise an error
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
                image.load()
                _rotate_in_place(image)
                return _to_rgb(image)
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


# Many image files


def decode_images(files, image_size, num_workers):
    """Yield each file's image in order: a NumPy array, uint8 (3, image_size, image_size), or an error message.

    Up to `num_workers` processes decode them: at most one per processor, and one per `FILES_PER_PROCESS` files.

    Raises:
        UserError: a process has died.
    """
    decode = functools.partial(_decode_or_explain, image_size=image_size)
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


def _decode_or_explain(file, image_size):
    try:
        return open_image(file, image_size).numpy()
    except UserError as error:
        return str(error)


def _prepare_process():
    """Make a process that decodes images ignore Ctrl-C, which the main process handles, and end with the main process.

    Without the thread, the process would wait for work forever after the main process was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)

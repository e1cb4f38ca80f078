"""Make a folder of 500 training and 600 test images of brick, grass and gravel, to try fine-tuning on.

    python benchmarks/textures.py my_images
    python train.py --init vit-layer6-32-cifar10 --dataset folder --data_path my_images --epochs 10 --batch_size 32

The images are crops of three gray photographs that come with scikit-image. The crops differ in size, brightness and
contrast. Crops for training are from the left part of a photograph, crops for testing from the right part; the two
parts do not overlap. Needs `pip install -r requirements-dev.txt`.
"""

import sys
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vit_cifar10.utils.cli import ArgumentParser, command
from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import atomic_folder

TEXTURES = ("brick", "grass", "gravel")
SPLITS = {
    "train": (500, 0, 330),
    "test": (600, 340, 512),
}  # number of images, and the columns that they are cropped from
SIDE = 48  # pixels of an image
CROPS = (32, 128)  # smallest and largest crop in pixels


@command
def main(argv=None):
    parser = ArgumentParser(description="Make a folder of images of three textures.")
    parser.add_argument("folder", type=Path, help="the new folder")
    folder = parser.parse_args(argv).folder
    if folder.exists():
        raise UserError(f"{folder} already exists; choose another folder")
    random = np.random.RandomState(0)
    photographs = [Image.fromarray(getattr(skimage.data, name)()) for name in TEXTURES]
    with atomic_folder(folder) as partial:
        for split, (count, left, right) in SPLITS.items():
            for name in TEXTURES:
                (partial / split / name).mkdir(parents=True)
            for i in range(count):
                label = i % len(TEXTURES)
                image = crop(photographs[label], left, right, random)
                image.save(partial / split / TEXTURES[label] / f"{i:03}.png")
    print(f"wrote {' and '.join(f'{SPLITS[split][0]} {split}' for split in SPLITS)} images to {folder}")


def crop(photograph, left, right, random):
    """A random square of the columns `left` to `right` of a gray photograph, with another brightness and contrast."""
    size = random.randint(CROPS[0], CROPS[1] + 1)
    x, y = random.randint(left, right - size + 1), random.randint(0, photograph.height - size + 1)
    square = photograph.crop((x, y, x + size, y + size)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(square, dtype=np.float64)
    values = values.mean() + random.uniform(0.6, 1.4) * (values - values.mean()) + random.uniform(-40, 40)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()

"""The tables of data sets and augmentation policies. To add one, write its function and an entry here.

This file does not import PyTorch, so that flags can offer the names without waiting for it. Functions are therefore
given as "module:function" and imported on use.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        reader: the function that reads one split, with the arguments `data_path`, `is_train`, `image_size` and
            `num_workers`. It returns uint8 images (N, 3, H, W) of any size, labels (N,), and the names of the classes.
            For the user's own files, it also takes `resize`, and returns their hashes (N,) and their paths.
        help: what it is, for --help.
        mean, std: of the training images scaled to [0, 1], channel by channel. None: measured on the images.
        is_own: whether the images are the user's own files in --data_path, which no output may replace. The path then
            identifies the data set, and classes may turn out to have no image.
        classes: their names, whose order is part of the data set; None: they depend on the images.
        val_reader: the function that reads validation images that the data set itself provides, with the arguments
            `data_path`, `image_size` and `num_workers`. It returns None if there are none.
        test_reader: the function that reads the images to test a network on, with the same arguments and `seen`, the
            hashes of those that the network has learned from.
    """

    reader: str
    help: str
    mean: tuple | None = None
    std: tuple | None = None
    is_own: bool = False
    classes: tuple | None = None
    val_reader: str | None = None
    test_reader: str | None = None


CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm"""
DATASETS = {
    "cifar10": DataSet(
        "vit_cifar10.data.cifar:read_cifar10",
        "60,000 small photos of 10 classes",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": DataSet(
        "vit_cifar10.data.cifar:read_cifar100",
        "60,000 small photos of 100 classes",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        classes=tuple(CIFAR100.split()),
    ),
    "folder": DataSet(
        "vit_cifar10.data.folder:read_folder",
        "one sub-folder of images per class in --data_path",
        is_own=True,
        val_reader="vit_cifar10.data.folder:read_validation",
        test_reader="vit_cifar10.data.folder:read_test",
    ),
    "shapes": DataSet(
        "vit_cifar10.data.dataset:read_shapes", "drawn shapes, no download", mean=(0.5,) * 3, std=(0.25,) * 3
    ),
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy of augmentation.

    Attributes:
        help: what it does, for --help.
        crops: whether images are first cropped at random and flipped.
        operations: the function that then changes the images. It takes uint8 images (B, 3, H, W) and what `ranges`
            returned, and returns such images.
        ranges: the function from the side and the device of the images to the tensor that `operations` needs. It is
            called outside of what is compiled.
    """

    help: str
    crops: bool = True
    operations: str | None = None
    ranges: str | None = None


POLICIES = {
    "none": Policy("unchanged images", crops=False),
    "basic": Policy("crop and flip"),
    "randaugment": Policy(
        "basic, then two operations of medium strength",
        operations="vit_cifar10.data.augment:rand_augment",
        ranges="vit_cifar10.data.augment:rand_augment_ranges",
    ),
    "trivialaugment": Policy(
        "basic, then one operation of any strength, which helps in long runs",
        operations="vit_cifar10.data.augment:trivial_augment_wide",
        ranges="vit_cifar10.data.augment:trivial_augment_ranges",
    ),
}


def help_of(table):
    """The help of all entries of a table: "name: help; name: help"."""
    return "; ".join(f"{name}: {entry.help}" for name, entry in table.items())

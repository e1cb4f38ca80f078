"""CIFAR-10 and CIFAR-100: read the files that their authors publish, and download them if they are missing.

    images, labels, classes = read_cifar("cifar10", "./data", is_train=True)    # uint8 (50000, 3, 32, 32), int64

The files are pickles, which can run programs, so they are loaded only if their checksums are correct.
"""

import dataclasses
import hashlib
import http.client
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch

from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.text import printable


@dataclasses.dataclass(frozen=True)
class Source:
    """A published data set.

    Attributes:
        url: the address of the archive.
        folder: the folder in the archive.
        train, test: {file: MD5 checksum}.
        names_file: the file with the names of the classes, and its checksum.
        label_key, names_key: the entries of the files that hold the labels and the names.
    """

    url: str
    folder: str
    train: dict
    test: dict
    names_file: tuple
    label_key: str
    names_key: str


SOURCES = {
    "cifar10": Source(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        names_file=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        label_key="labels",
        names_key="label_names",
    ),
    "cifar100": Source(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        names_file=("meta", "7973b15100ade9c7d40fb424638fde48"),
        label_key="fine_labels",
        names_key="fine_label_names",
    ),
}


def read_cifar10(data_path, is_train, image_size, num_workers):
    """One split of CIFAR-10, as from `read_cifar`. The images keep their size, and no process is needed."""
    return read_cifar("cifar10", data_path, is_train)


def read_cifar100(data_path, is_train, image_size, num_workers):
    """One split of CIFAR-100, as from `read_cifar`. The images keep their size, and no process is needed."""
    return read_cifar("cifar100", data_path, is_train)


def read_cifar(name, data_path, is_train):
    """The training or test images, uint8 (N, 3, 32, 32), their labels, and the names of the classes.

    `data_path` is the folder that contains the data set's folder, or this folder itself. If files are missing or
    damaged, the data set is downloaded.

    Raises:
        UserError: it could not be downloaded.
    """
    source = SOURCES[name]
    if os.path.basename(os.path.abspath(data_path)) == source.folder:  # the folder of the files itself
        data_path = os.path.dirname(os.path.abspath(data_path))
    existed = Path(data_path).exists()
    try:
        try:
            return load_files(source, data_path, is_train)
        except RuntimeError:
            print(printable(f"{name} is missing or incomplete in {data_path}; downloading it"), file=sys.stderr)
            download(name, data_path, is_train)
            return load_files(source, data_path, is_train)
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        if not existed and Path(data_path).is_dir() and not any(Path(data_path).iterdir()):
            Path(data_path).rmdir()  # torchvision has created it
        folder = Path(data_path) / source.folder
        state = "is damaged" if folder.exists() else "is not"
        raise UserError(
            f"{name} {state} in {data_path} and could not be downloaded ({error}); set --data_path to the folder that"
            f" contains {source.folder}, or download {source.url} elsewhere and unpack it so that {folder}"
            " exists, or run train.py --dataset shapes, which needs no download"
        ) from error


def load_files(source, data_path, is_train):
    """Load the files of one split. Raises `RuntimeError` if they are damaged, or a file of either split is missing."""
    folder = Path(os.path.expanduser(data_path), source.folder)
    for file in (*source.train, *source.test):
        if not os.path.isfile(folder / file):
            raise RuntimeError(f"{folder / file} is missing")
    files = source.train if is_train else source.test
    contents = [load_pickle(folder / file, checksum) for file, checksum in files.items()]
    names_file, checksum = source.names_file
    classes = load_pickle(folder / names_file, checksum)[source.names_key]
    images = np.concatenate([content["data"] for content in contents]).reshape(-1, 3, 32, 32)
    labels = [label for content in contents for label in content[source.label_key]]
    return torch.from_numpy(images), torch.tensor(labels), classes


def load_pickle(path, checksum):
    """Load a pickle of Python 2. Raises `RuntimeError` if the file is missing or its checksum is wrong."""
    content = path.read_bytes() if os.path.isfile(path) else b""
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != checksum:
        raise RuntimeError(f"{path} is missing or damaged")
    return pickle.loads(content, encoding="latin1")


def download(name, data_path, is_train):
    """Download and unpack the data set with torchvision, which checks the archive and all files.

    Raises:
        RuntimeError: the files would be unpacked through a link, and so would replace files elsewhere. What `tarfile`
            does about links depends on the version of Python, and whether it is asked to, on torchvision's.
    """
    import torchvision  # imported only here because it takes seconds

    folder = Path(os.path.expanduser(data_path), SOURCES[name].folder)
    for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        if path.is_symlink():
            raise RuntimeError(f"{path} is a link, through which nothing is unpacked; remove it")
    getattr(torchvision.datasets, name.upper())(data_path, train=is_train, download=True)

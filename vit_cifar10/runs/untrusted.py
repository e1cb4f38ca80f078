"""Reading files of tensors that may come from strangers: only tensors and plain values are accepted.

Nothing in a file is executed, no tensor is larger than its data in the file, and no two tensors share memory.
runs/schema.py checks the values.
"""

import os
import pickle
import pickletools
import zipfile

import torch

from vit_cifar10.utils.errors import UserError

# The only functions that a file may call: those that PyTorch needs to rebuild tensors.
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
GLOBALS |= {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool", "Byte")}
CALLS = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")  # pickle opcodes
LARGEST_PICKLE = 30_000_000  # bytes without the tensors; a run of 1,000 epochs needs 200,000
LARGEST_DIRECTORY = 10_000_000  # bytes of the archive's list of entries; a tensor needs about 70
MOST_TENSORS = 100_000
MOST_OPERATIONS = 1_600_000  # pickle operations; this bounds time and memory. A run of 1,000 epochs needs 30,000


def load_untrusted(path):
    """Read a file that `save_tensors` has written, onto the CPU.

    Raises:
        UserError: the file is damaged, or contains anything but tensors and plain values.
    """
    if not path.is_file():  # reading from a pipe could wait forever
        raise UserError(f"{path} is not a file")
    try:
        with open(path, "rb") as file:  # opened once: the file that is checked is the one that is loaded
            check_archive(path, file)
            file.seek(0)
            value = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it is damaged, or contains more than weights and plain values") from error
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path} cannot be read as a checkpoint; it is damaged or another kind of file") from error
    check_tensors(path, value)
    return value


def check_archive(path, file):
    """Raise `UserError` unless an open file is a complete archive as PyTorch writes it, uncompressed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(-min(22, size), os.SEEK_END)
    end = file.read()
    if end.startswith(b"PK\5\6") and int.from_bytes(end[12:16], "little") > LARGEST_DIRECTORY:
        raise UserError(f"{path} is refused: it contains more entries than any run")
    with zipfile.ZipFile(file) as archive:
        if not is_plain_archive(archive, file, size):
            raise UserError(f"{path} is refused: it is packed in a way that this project does not write")
        damaged = archive.testzip()
        if damaged:
            raise UserError(f"{path} cannot be read as a checkpoint; it is damaged (checksum of {damaged})")
        check_pickle(path, archive)


def is_plain_archive(archive, file, size):
    """Whether all readers see the same entries in an archive, and unpacking does not make it larger than `size`."""
    entries = archive.infolist()
    names = [entry.filename.lower() for entry in entries]  # PyTorch ignores case
    file.seek(archive.start_dir)
    has_one_directory = is_found_by_all_readers(archive.start_dir, file.read())
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    is_no_larger = sum(entry.file_size for entry in entries) <= size
    return has_one_directory and is_stored and is_no_larger and len(set(names)) == len(names)


def is_found_by_all_readers(start, directory):
    """Whether the offsets at an archive's end point to the directory that Python found, bytes at offset `start`.

    PyTorch follows these offsets. Python does not, so both could see different archives in one file.
    """
    end64, locator, end = directory[-98:-42], directory[-42:-22], directory[-22:]
    is_end = end.startswith(b"PK\5\6")
    if not locator.startswith(b"PK\6\7"):
        return is_end and int.from_bytes(end[16:20], "little") == start
    end64_start = start + len(directory) - 98
    is_located = end64.startswith(b"PK\6\6") and int.from_bytes(locator[8:16], "little") == end64_start
    return is_end and is_located and int.from_bytes(end64[48:56], "little") == start


def check_pickle(path, archive):
    """Raise `UserError` if the archive's pickle is too large, or calls anything but what rebuilds tensors.

    PyTorch's `weights_only` does not execute code either, but it allows calls that allocate unlimited memory.
    """
    pickles = [entry for entry in archive.infolist() if entry.filename.lower().endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
        raise UserError(f"{path} is refused: it is packed in a way that this project does not write")
    tensors = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(archive.read(pickles[0]))):
        is_allowed = operation.name not in CALLS or (operation.name == "GLOBAL" and argument in GLOBALS)
        if not is_allowed:
            raise UserError(f"{path} is refused: it contains {argument or operation.name}, not only weights and values")
        tensors += operation.name == "BINPERSID"
        if count > MOST_OPERATIONS or tensors > MOST_TENSORS:
            raise UserError(f"{path} is refused: it contains more values than any run")


def check_tensors(path, value):
    """Raise `UserError` unless each tensor in nested lists, tuples and dicts is plain and has memory of its own.

    Otherwise a small file could need a lot of memory, and PyTorch's fused kernels could write out of bounds.
    """
    visited, storages, places = set(), set(), [value]
    while places:
        place = places.pop()
        if isinstance(place, torch.Tensor):
            address = place.untyped_storage().data_ptr()
            if not is_plain_tensor(place) or address in storages:
                raise UserError(f"{path} is refused: its tensors are stored in a way that this project does not write")
            storages |= {address} if place.numel() else set()
        elif isinstance(place, dict | list | tuple) and id(place) not in visited:  # a list may even contain itself
            visited.add(id(place))
            places += place.values() if isinstance(place, dict) else place


def is_plain_tensor(tensor):
    """Whether a tensor is dense, on the CPU, and fills its storage, in the order of its axes or channels last."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    is_dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return is_dense and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()

"""Read files of tensors that may come from strangers: only tensors and plain values are accepted.

Nothing in a file is executed, no tensor is larger than its data in the file, and no two tensors share memory. What is
returned is plain: values of Python's own types, nested a few levels deep, and tensors that are detached, dense and
contiguous. runs/schema.py checks the values.
"""

import os
import pickle
import pickletools
import zipfile

import torch

from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.files import check_is_downloaded

REBUILD, ORDERED_DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"  # what a file may call
GLOBALS = {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Bool", "Byte")}
GLOBALS |= {REBUILD, ORDERED_DICT}
VALUES = ("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
PUSHED = {**dict.fromkeys((*VALUES, "SHORT_BINSTRING"), "value"), "EMPTY_DICT": "dict", "EMPTY_LIST": "list"}
TAKEN = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}  # values by operation
TAKEN |= dict.fromkeys(("TUPLE", "APPENDS", "SETITEMS"))  # None: all values after the last mark
LARGEST_PICKLE = 30_000_000  # bytes without the tensors; a run of 1,000 epochs needs 200,000
LARGEST_DIRECTORY = 10_000_000  # bytes of the archive's list of entries; a tensor needs about 70
LARGEST_TUPLE = 100  # values in nested tuples; what describes a tensor needs about 10
MOST_TENSORS = 100_000
MOST_OPERATIONS = 1_600_000  # pickle operations; this bounds time and memory. A run of 1,000 epochs needs 30,000
DEEPEST = 20  # levels of nested values; a run has 6
MORE = "it contains more values than any run"
UNUSUAL = "it is packed in a way that this project does not write"


class Refused(Exception):
    """A file is refused; the message is why."""


def load_untrusted(path, digest=None):
    """Read a file that `save_tensors` has written, onto the CPU. `digest`, from hashlib, is updated with its bytes.

    Raises:
        UserError: the file is damaged, or contains anything but tensors and plain values.
    """
    if not path.is_file():  # reading from a pipe could wait forever
        raise UserError(f"{path} is not a file")
    try:
        with open(path, "rb") as file:  # opened once: the file that is checked and hashed is the one that is loaded
            check_is_downloaded(file)
            check_archive(file)
            if digest:
                file.seek(0)
                while block := file.read(2**20):
                    digest.update(block)
            file.seek(0)
            return PlainCopier().copy(torch.load(file, map_location="cpu", weights_only=True))
    except UserError:
        raise
    except Refused as error:
        raise UserError(f"{path} is refused: {error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: it is damaged, or contains more than weights and plain values") from error
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{path} cannot be read as a checkpoint; it is damaged or another kind of file") from error


def check_archive(file):
    """Raise `Refused` unless an open file is a complete archive as PyTorch writes it, uncompressed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(-min(22, size), os.SEEK_END)
    end = file.read()
    if end.startswith(b"PK\5\6") and int.from_bytes(end[12:16], "little") > LARGEST_DIRECTORY:
        raise Refused("it contains more entries than any run")
    with zipfile.ZipFile(file) as archive:
        if not is_plain_archive(archive, file, size):
            raise Refused(UNUSUAL)
        damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(damaged)
        pickles = [entry for entry in archive.infolist() if entry.filename.lower().endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
            raise Refused(UNUSUAL)
        PickleChecker().check(archive.read(pickles[0]))


def is_plain_archive(archive, file, size):
    """Whether all readers see the same entries in an archive, and unpacking does not make it larger than `size`."""
    entries = archive.infolist()
    names = [entry.filename.lower() for entry in entries]  # PyTorch ignores case
    file.seek(0)
    is_first = file.read(4) == b"PK\3\4"  # else PyTorch would read the file as an older format, without these checks
    file.seek(archive.start_dir)
    has_one_directory = is_found_by_all_readers(archive.start_dir, file.read())
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    is_no_larger = sum(entry.file_size for entry in entries) <= size
    return is_first and has_one_directory and is_stored and is_no_larger and len(set(names)) == len(names)


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


class PickleChecker:
    """Follows the operations of a pickle without doing them, and refuses what tensors and plain values do not need.

    PyTorch's `weights_only` does not execute code either. But it allows calls that allocate unlimited memory, and a key
    of a dict may be a tuple that is nested without limit, which crashes Python or keeps it busy forever.

    The stack holds [kind, size] of every value, where `size` is the number of entries of a dict or list, and the number
    of values in nested tuples. The memo shares these lists, as pickles share values.
    """

    def __init__(self):
        self.stack, self.marks, self.memo, self.tensors = [], [], {}, 0

    def check(self, data):
        """Raise `Refused` if a pickle contains anything else, or more than any run."""
        for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
            name = operation.name
            if count > MOST_OPERATIONS or self.tensors > MOST_TENSORS:
                raise Refused(MORE)
            if name in PUSHED:
                self.stack.append([PUSHED[name], 0])
            elif name in ("BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])
            elif name == "MARK":
                self.marks.append(len(self.stack))
            elif name in TAKEN:
                self.collect(name)
            elif name not in ("PROTO", "STOP"):
                self.call(name, argument)

    def take(self, start):
        """Remove and return the values on the stack from the place `start` on."""
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def collect(self, name):
        """Make a tuple of the last values, or add them to the dict or list before them."""
        values = self.take(self.marks.pop() if TAKEN[name] is None else len(self.stack) - TAKEN[name])
        if "TUPLE" not in name:
            self.stack[-1][1] += len(values)
            return
        size = 1 + sum(size if kind == "tuple" else 1 for kind, size in values)
        if size > LARGEST_TUPLE:
            raise Refused(MORE)
        self.stack.append(["tuple", size])

    def call(self, name, argument):
        """Rebuild a tensor or an ordered dict, and its notes."""
        if name == "GLOBAL" and argument in GLOBALS:
            self.stack.append([argument, 0])
        elif name == "BINPERSID":
            self.stack[-1] = ["storage", 0]
            self.tensors += 1
        elif name == "REDUCE":
            (function, _), arguments = self.take(-2)
            if function != REBUILD and (function, *arguments) != (ORDERED_DICT, "tuple", 1):
                raise Refused(f"it calls {function} in a way that weights do not need")
            self.stack.append(["dict with notes" if function == ORDERED_DICT else "tensor", 0])
        elif name == "BUILD":  # PyTorch adds notes to a state dict. On a tensor, it could allocate memory
            (target, _), (kind, size) = self.stack[-2], self.stack.pop()
            if (target, kind) != ("dict with notes", "dict") or size > LARGEST_TUPLE:
                raise Refused(f"it changes a {target}, which weights do not need")
        else:
            raise Refused(f"it contains {argument or name}, not only weights and values")


class PlainCopier:
    """Copies what PyTorch has loaded; here end all properties that only a forged file can give to values and tensors.

    Values that a file contains once and refers to often are copied as often, within a bound.
    """

    def __init__(self):
        self.count, self.storages = 0, set()

    def copy(self, value, depth=0):
        """A copy of nested tensors and plain values. Raises `Refused` if it contains anything else, or too much."""
        self.count += 1
        if self.count > MOST_OPERATIONS:
            raise Refused(MORE)
        if depth > DEEPEST:
            raise Refused("its values are nested more deeply than in any run")
        if isinstance(value, torch.Tensor):
            return self.copy_tensor(value)
        if isinstance(value, dict):
            items = dict.items(value)  # an OrderedDict may have an attribute `items`
            return {self.copy_key(key): self.copy(item, depth + 1) for key, item in items}
        if isinstance(value, list | tuple):
            return type(value)([self.copy(item, depth + 1) for item in value])
        if value is not None and type(value) not in (bool, int, float, str):
            raise Refused("it contains more than weights and plain values")
        return value

    def copy_key(self, key):
        if type(key) not in (int, str):
            raise Refused("it contains more than weights and plain values")
        return key

    def copy_tensor(self, tensor):
        """A detached, dense, contiguous tensor of its own, without data if it is so already.

        It must fill its storage. Otherwise a small file could need a lot of memory.
        """
        storage = tensor.untyped_storage()
        address = storage.data_ptr() if tensor.numel() else id(tensor)
        if not is_plain_tensor(tensor) or address in self.storages:
            raise Refused("its tensors are stored in a way that this project does not write")
        self.storages.add(address)
        return tensor.detach().resolve_conj().resolve_neg().contiguous()


def is_plain_tensor(tensor):
    """Whether a tensor is dense, on the CPU, and fills its storage, in the order of its axes or channels last."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    is_dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return is_dense and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()

"""Read the tensors in any file that `torch.save` has written, without running or building anything else in it.

    value = read_saved_tensors(Path("checkpoint.pth"))      # .contents: dicts, lists, numbers, `Stored`
    tensor = value.load(value.contents["state_dict"]["head.bias"])

Checkpoints of other programs contain the objects of their authors: arguments, numbers of NumPy, optimizers. Their
pickles are followed here operation by operation. Tensors, plain values and containers are kept; every other object
becomes an `Other`, which only knows its name. Nothing is imported or called, so files may come from strangers.
"""

import dataclasses
import io
import math
import pickletools
import zipfile

import torch

from vit_cifar10.utils.errors import UserError
from vit_cifar10.utils.text import one_line, shorten

LARGEST_PICKLE = 100_000_000  # bytes without the tensors
MOST_OPERATIONS = 5_000_000  # of pickles; optimizers and logs have their share
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first number in files of PyTorch before 1.6
DTYPES = {
    **{"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
    "Bool": torch.bool,
}
DTYPES = {f"torch {name}Storage": dtype for name, dtype in DTYPES.items()}
DICTS = ("collections OrderedDict", "collections defaultdict", "builtins dict")
TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
PARAMETERS = ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
METHODS = {"GLOBAL": "push_global", "POP": "build"}  # operations whose methods have other names
MARK = object()


@dataclasses.dataclass(frozen=True)
class Other:
    """An object that is not built: an instance of the class `name`, what a function of this name returns, or itself."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """The memory of tensors: its key in the file, and its number of elements."""

    key: str
    dtype: torch.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in the file: a view of a storage."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple

    @property
    def is_plain(self):
        """Whether its elements are different ones in the storage, so that it is no larger than its data."""
        axes = sorted(zip(self.strides, self.shape, strict=True))
        numbers = [self.offset, *self.shape, *self.strides]
        if not all(type(number) is int and number >= 0 for number in numbers) or 0 in self.shape:
            return False
        extent = 1
        for stride, size in axes:
            if size > 1:
                if stride < extent:
                    return False
                extent = stride * (size - 1) + extent
        return self.offset + extent <= self.storage.count

    @property
    def bytes(self):
        return math.prod(self.shape) * self.storage.dtype.itemsize


@dataclasses.dataclass
class SavedTensors:
    """What a file contains, and `read`, a function from a `Storage` to its bytes."""

    contents: object
    read: object

    def load(self, stored):
        """A tensor of its own. Raises `ValueError` if it does not fit its data."""
        data, storage = self.read(stored.storage), stored.storage
        if not stored.is_plain or len(data) != storage.count * storage.dtype.itemsize:
            raise ValueError("a tensor does not fit its data")
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        return flat.as_strided(stored.shape, stored.strides, stored.offset).clone(memory_format=torch.contiguous_format)


def read_saved_tensors(path):
    """The `SavedTensors` in a file. Its bytes are read only when a tensor is loaded.

    Raises:
        UserError: the file is damaged, or of another kind.
    """
    try:
        if zipfile.is_zipfile(path):
            return read_archive(path)
        return read_legacy(path)
    except Exception as error:  # a damaged file fails in many ways
        reason = shorten(one_line(error), 100)
        raise UserError(f"{path} cannot be read as a file that torch.save wrote ({reason}); it is damaged") from error


def read_archive(path):
    """The contents of a file of PyTorch 1.6 or later, which is an archive."""
    archive = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in archive.infolist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    folder = name.removesuffix("data.pkl")
    if entries[name].file_size > LARGEST_PICKLE:
        raise ValueError("its pickle is too large")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ValueError("it is compressed")
    if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    contents = Unpickler().read(io.BytesIO(archive.read(name)))
    return SavedTensors(contents, lambda storage: archive.read(f"{folder}data/{storage.key}"))


def read_legacy(path):
    """The contents of a file before PyTorch 1.6: five pickles and the storages in the order of the fifth."""
    with open(path, "rb") as file:
        unpickler = Unpickler()
        magic, _, system, contents, keys = (unpickler.read(file) for _ in range(5))
        if magic != LEGACY_MAGIC or system.get("little_endian") is not True:
            raise ValueError("it does not begin as such a file")
        data = {}
        for key in keys:
            storage, count = unpickler.storages[key], int.from_bytes(file.read(8), "little")
            if count != storage.count:
                raise ValueError("a storage has another size")
            data[key] = file.read(count * storage.dtype.itemsize)
    return SavedTensors(contents, lambda storage: data[storage.key])


class Unpickler:
    """Follows the operations of pickles. `storages` are those that tensors refer to, {key: Storage}."""

    def __init__(self):
        self.storages, self.count = {}, 0

    def read(self, file):
        """The value of the next pickle in a file."""
        self.stack, self.memo = [], {}
        for operation, argument, _ in pickletools.genops(file):
            self.count += 1
            if self.count > MOST_OPERATIONS:
                raise ValueError("it contains too many values")
            self.follow(operation.name, argument)
        return self.stack.pop()

    def follow(self, name, argument):
        stack, method = self.stack, getattr(self, METHODS.get(name, name.lower()), None)
        if method:
            method(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name.endswith("PUT"):
            self.memo[argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(self.memo[argument])
        elif argument is not None and name not in ("PROTO", "FRAME"):  # a number or a text
            stack.append(argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"the operation {name}")

    def pop(self, count):
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def pop_to_mark(self):
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def mark(self, _):
        self.stack.append(MARK)

    def pop_mark(self, _):
        self.pop_to_mark()

    def empty_dict(self, _):
        self.stack.append({})

    def empty_list(self, _):
        self.stack.append([])

    empty_set = empty_list

    def empty_tuple(self, _):
        self.stack.append(())

    def tuple1(self, _):
        self.stack.append(tuple(self.pop(1)))

    def tuple2(self, _):
        self.stack.append(tuple(self.pop(2)))

    def tuple3(self, _):
        self.stack.append(tuple(self.pop(3)))

    def tuple(self, _):
        self.stack.append(tuple(self.pop_to_mark()))

    def list(self, _):
        self.stack.append(self.pop_to_mark())

    frozenset = list

    def extend(self, items):
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def append(self, _):
        self.extend(self.pop(1))

    def appends(self, _):
        self.extend(self.pop_to_mark())

    additems = appends

    def update(self, items):
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self.stack[-1].update((key, value) for key, value in pairs if isinstance(key, str | int | float))

    def setitem(self, _):
        self.update(self.pop(2))

    def setitems(self, _):
        self.update(self.pop_to_mark())

    def push_global(self, name):
        self.stack.append(Other(name))

    def stack_global(self, _):
        self.stack.append(Other(" ".join(map(str, self.pop(2)))))

    def build(self, _):
        self.stack.pop()  # attributes of an object

    def reduce(self, _):
        function, arguments = self.pop(2)
        name = function.name
        if name in DICTS:
            self.stack.append({})
        elif name in PARAMETERS:
            self.stack.append(arguments[0])
        elif name in TENSORS:
            storage, offset, shape, strides = arguments[:4]
            self.stack.append(Stored(storage, offset, shape, strides))
        else:
            self.stack.append(Other(name))

    newobj = reduce

    def newobj_ex(self, _):
        self.pop(1)
        self.reduce(None)

    def binpersid(self, _):
        kind, dtype, *place = self.stack.pop()
        if kind == "module":  # the class of a network, with its source
            self.stack.append(dtype)
            return
        key, _, count, *view = place
        if kind != "storage" or dtype.name not in DTYPES or any(view):
            raise ValueError(f"the storage {shorten(str(dtype))}")
        self.stack.append(self.storages.setdefault(key, Storage(key, DTYPES[dtype.name], count)))

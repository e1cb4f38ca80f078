"""Where and how a network runs: device, precision, compilation, random seeds, training or evaluation mode."""

import contextlib
import importlib.util
import math
import os
import random
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import numpy as np
import torch

from vit_cifar10.utils.errors import UserError

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name):
    """The torch.device for `auto`, `cpu`, `cuda` or `mps`. `auto` prefers cuda, then mps, then cpu.

    Raises:
        UserError: this machine, or this build of PyTorch, does not have the device.
    """
    is_available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    devices = [device for device, available in is_available.items() if available]
    if name == "auto":
        name = devices[0]
    if name not in devices:
        raise UserError(f"--device {name} is not available here; use --device {' or '.join(devices)} (or auto)")
    return torch.device(name)


def evaluation_batch_size(device):
    """Images per batch of a prediction. On a CPU, larger batches are not faster, and take up to a gigabyte more."""
    return 100 if device.type == "cpu" else 1000


def has_fast_bf16(device):
    """Whether matrix products are faster in bf16: on CUDA GPUs since Ampere, and on processors with bf16 units.

    These are Intel's AMX (since 2023) and AVX512_BF16 (also in AMD's processors since Zen 4).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def pick_precision(name, device):
    """Resolve `auto` to a precision: bf16 where it is fast, fp16 on older CUDA GPUs, fp32 elsewhere."""
    if name != "auto":
        return name
    if has_fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def autocast(device, precision):
    """A context manager that runs the forward pass in `fp32`, `bf16` or `fp16`."""
    dtype = AUTOCAST_DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def pick_compile(name, device):
    """Whether to compile the network, given --compile. `auto` compiles on CUDA if the toolchain is there.

    Raises:
        UserError: the user asks for what this machine cannot compile.
    """
    if name == "graphs" and device.type != "cuda":
        raise UserError("--compile graphs needs a CUDA GPU; use --compile auto")
    if name == "off" or (name == "auto" and device.type != "cuda"):
        return False
    missing = missing_for_compiler(device)
    if missing and name != "auto":
        raise UserError(f"--compile {name} needs {missing}; use --compile auto, which then does not compile")
    return missing is None


def missing_for_compiler(device):
    """What torch.compile needs for a device and does not find, in words; None if it finds everything."""
    if device.type == "cuda":
        needed = {
            "a GPU of compute capability 7.0 or newer": torch.cuda.get_device_capability(device) >= (7, 0),
            "Triton": importlib.util.find_spec("triton"),
            "a C compiler": find_program(os.environ.get("CC")) or shutil.which("gcc") or shutil.which("clang"),
        }
    elif device.type == "cpu":
        usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        needed = {"a C++ compiler, such as g++": find_program(os.environ.get("CXX", usual))}
    else:
        return None
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton looks for the headers
    needed["Python's header files"] = Path(sysconfig.get_path("include", scheme), "Python.h").exists()
    return next((name for name, is_found in needed.items() if not is_found), None)


def find_program(command):
    """The path of the program of a command such as "ccache g++", or None."""
    words = shlex.split(command or "", posix=os.name == "posix")
    return shutil.which(words[0]) if words else None


@contextlib.contextmanager
def eval_mode(model):
    """Put a network in evaluation mode, then back in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)


def seed_everything(seed):
    """Seed Python's, NumPy's and PyTorch's generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed, device):
    """Seed the generators that a training step uses: PyTorch's on the CPU and on `device`.

    `torch.manual_seed` seeds every device, which takes longer than the random draws of a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def to_device(tensor, device):
    """Copy a tensor from the CPU to a device. On CUDA, the CPU does not wait until the GPU has reached the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def synchronize(device):
    """Wait until the device has finished its work, so that timings are correct."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_label(device):
    """The readable name of a device, such as "NVIDIA H200" or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def physical_memory():
    """Bytes of memory in this machine or, if it is less, in this container; infinity if neither is reported."""
    limits = [math.inf]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of Linux's control groups, versions 2 and 1
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
            limits.append(int(Path("/sys/fs/cgroup", file).read_text()))
    return min(limits)

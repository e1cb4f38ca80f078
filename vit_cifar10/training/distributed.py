"""Training in several processes: ranks, shards of a batch, and synchronized batch normalization.

`torchrun --nproc_per_node=4 train.py ...` starts a job of four ranks. Without torchrun, a job is one process and has no
overhead. Every rank holds the same weights and images, sees the same batches, and trains on its shard.

with join_job() as job:
    args = job.broadcast_from_rank0(read_flags)     # rank 0 runs it; all ranks get the result or the error
    model = job.parallel(model)                     # averages gradients over the ranks
    shard = images[job.shard(len(images))]          # this rank's part of a batch
"""

import contextlib
import gc
import os
import re

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vit_cifar10.utils.errors import LocalError, UserError


@contextlib.contextmanager
def join_job():
    """Join the job that torchrun has started, or form a job of one process.

    Raises:
        LocalError: the connection to the other ranks breaks.
    """
    if not distributed.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield Job()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    distributed.init_process_group(backend)
    try:
        yield Job(distributed.get_rank(), distributed.get_world_size(), int(os.environ["LOCAL_RANK"]))
        distributed.barrier()  # no rank breaks its connections while another one still uses them
    except RuntimeError as error:
        if not is_disconnection(error):
            raise
        reason = "another process of this job has ended, so this one ends too; see torchrun's report for the cause"
        raise LocalError(reason) from error
    except LocalError:
        raise
    except (UserError, SystemExit):  # all ranks end in the same way
        distributed.destroy_process_group()
        raise
    gc.collect()  # what is left of the training in reference cycles uses the connections and must not outlive them
    distributed.destroy_process_group()


def is_disconnection(error):
    """Whether gloo or NCCL raised an error because another process has ended."""
    is_gloo = re.search(r"gloo/.*(closed|reset|refused|broken pipe)", str(error), re.IGNORECASE | re.DOTALL)
    return bool(is_gloo) or isinstance(error, distributed.DistBackendError | distributed.DistNetworkError)


class Job:
    """One of `size` processes that train one network. Only rank 0 prints and writes."""

    def __init__(self, rank=0, size=1, local_rank=0):
        self.rank, self.size, self.local_rank = rank, size, local_rank

    @property
    def is_rank0(self):
        return self.rank == 0

    def device(self, device):
        """This rank's own device of the same type as `device`.

        Raises:
            UserError: there are fewer GPUs than processes, or the device cannot be shared.
        """
        if self.size == 1 or device.type == "cpu":
            return device
        local_size = int(os.environ["LOCAL_WORLD_SIZE"])
        if device.type != "cuda":
            raise UserError(f"several processes cannot share --device {device.type}; use one, or --device cpu")
        if local_size > torch.cuda.device_count():
            error_type = UserError if self.local_rank else LocalError  # one rank per machine prints the message
            raise error_type(
                f"{local_size} processes need {local_size} GPUs, but this machine has {torch.cuda.device_count()};"
                " lower --nproc_per_node, or use --device cpu"
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def run_on_rank0(self, function):
        """Call `function()` on rank 0. Return its result there, and None on the other ranks.

        The other ranks wait. If rank 0 raises `UserError` or `SystemExit`, they raise it too.
        """
        if self.size == 1:
            return function()
        result = error = None
        if self.is_rank0:
            try:
                result = function()
            except (UserError, SystemExit) as raised:
                error = raised
        error = self._broadcast(error)
        if error is not None:
            raise error
        return result

    def broadcast_from_rank0(self, function):
        """Call `function()` on rank 0, as `run_on_rank0` does, and return its result on every rank."""
        result = self.run_on_rank0(function)
        return result if self.size == 1 else self._broadcast(result)

    def _broadcast(self, value):
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def shard(self, count):
        """The slice of `count` items that this rank works on; `count` is a multiple of the number of ranks."""
        length = count // self.size
        return slice(self.rank * length, (self.rank + 1) * length)

    def sum(self, tensor):
        """Sum a tensor over all ranks, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def map(self, function, split):
        """`function(split)`, one row per image, computed by all ranks together.

        All shards have the same length: the last ones repeat images, and their rows are dropped.
        """
        if self.size == 1:
            return function(split)
        length = -(-len(split) // self.size)
        mine = torch.arange(self.rank * length, (self.rank + 1) * length).clamp(max=len(split) - 1)
        rows = function(split.subset(mine)).contiguous()
        gathered = [torch.empty_like(rows) for _ in range(self.size)]
        distributed.all_gather(gathered, rows)
        return torch.cat(gathered)[: len(split)]

    def convert_sync_batchnorm(self, model):
        """Make batch normalization use the statistics of all ranks. The weights stay the same tensors."""
        if self.size > 1:
            for module in model.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = SyncBatchNorm2d
        return model

    def parallel(self, model):
        """The network, with its gradients averaged over the ranks."""
        return DistributedDataParallel(model) if self.size > 1 else model


class AsyncMaxAllReduce:
    """The elementwise maximum, over all ranks, of a few integers that each rank passes at every call.

    With several ranks, a call returns the maximum of the previous call's values, so that no rank waits for the others.
    """

    def __init__(self, job):
        self.job = job
        self.pending = None

    def __call__(self, *values):
        if self.job.size == 1:
            return values
        previous, tensor = self.pending, torch.tensor(values)
        self.pending = (distributed.all_reduce(tensor, distributed.ReduceOp.MAX, async_op=True), tensor)
        if previous is None:
            return (0,) * len(values)
        work, maximum = previous
        work.wait()
        return tuple(maximum.tolist())

    def finish(self):
        """Wait for the last reduction. A process that exits while it is running may crash."""
        if self.pending:
            self.pending[0].wait()
            self.pending = None


class AllReduce(torch.autograd.Function):
    """The sum over all ranks, through which gradients flow back to each rank."""

    @staticmethod
    def forward(context, tensor):
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(context, gradient):
        return AllReduce.forward(context, gradient)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization over the shards of all ranks, like `nn.SyncBatchNorm`, which works only on GPUs."""

    def forward(self, images):
        if not self.training:
            return super().forward(images)
        values = images.to(self.weight.dtype)
        count = distributed.get_world_size() * values.numel() / values.shape[1]
        sums = torch.stack([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))])
        mean, mean_square = AllReduce.apply(sums) / count
        variance = (mean_square - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(images.dtype)

"""The processes of a job: which one this is, how they share work and agree, and the signals that stop them.

`torchrun --nproc_per_node=4 train.py ...` makes a job of four; anything else is a job of one, for which all of this
costs nothing. Every process holds the same weights and the same images, sees the same batches and takes its share.

with join_job() as job, StopSignals(job) as signals:
    args = job.from_first(read_flags)          # the first process does it, all of them get the answer or the error
    model = job.parallel(model)                # gradients are averaged over the processes
    share = images[job.slice(len(images))]     # this process's part of a batch
"""

import contextlib
import os
import re

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vit_cifar10.utils.errors import LocalError, UserError


@contextlib.contextmanager
def join_job():
    """The job this process belongs to: that of torchrun which has started it, or one of its own.

    Raises:
        LocalError: the connection to the other processes breaks.
    """
    if not distributed.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield Job()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    distributed.init_process_group(backend)
    try:
        yield Job(distributed.get_rank(), distributed.get_world_size(), int(os.environ["LOCAL_RANK"]))
    except RuntimeError as error:
        if not is_disconnection(error):
            raise
        raise LocalError("another process of this job has ended (torchrun says which), and this one with it") from error
    except LocalError:
        raise
    except (UserError, SystemExit):  # all processes end alike
        distributed.destroy_process_group()
        raise
    distributed.destroy_process_group()


def is_disconnection(error):
    """Whether an error is how gloo or NCCL say that another process is gone."""
    is_gloo = re.search(r"gloo/.*(closed|reset|refused|broken pipe)", str(error), re.IGNORECASE | re.DOTALL)
    return bool(is_gloo) or isinstance(error, distributed.DistBackendError | distributed.DistNetworkError)


class Job:
    """One of `size` processes that train one network; process 0 alone prints and writes."""

    def __init__(self, rank=0, size=1, local_rank=0):
        self.rank, self.size, self.local_rank = rank, size, local_rank

    @property
    def is_first(self):
        return self.rank == 0

    def device(self, device):
        """This process's own device of the kind of `device`.

        Raises:
            UserError: there are fewer GPUs than processes, or the kind cannot be shared.
        """
        if self.size == 1 or device.type == "cpu":
            return device
        local_size = int(os.environ["LOCAL_WORLD_SIZE"])
        if device.type != "cuda":
            raise UserError(f"several processes cannot share --device {device.type}; use one, or --device cpu")
        if local_size > torch.cuda.device_count():
            kind = UserError if self.local_rank else LocalError  # said once on every machine
            raise kind(
                f"{local_size} processes need as many GPUs, here are {torch.cuda.device_count()};"
                " lower --nproc_per_node, or use --device cpu"
            )
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        return device

    def on_first(self, function):
        """Call `function()` in the first process and return its answer there, None elsewhere.

        The others wait for it, and raise the `UserError` or `SystemExit` that it raises.
        """
        if self.size == 1:
            return function()
        answer = error = None
        if self.is_first:
            try:
                answer = function()
            except (UserError, SystemExit) as raised:
                error = raised
        error = self._from_first(error)
        if error is not None:
            raise error
        return answer

    def from_first(self, function):
        """As `on_first`, and the answer is returned in every process."""
        answer = self.on_first(function)
        return answer if self.size == 1 else self._from_first(answer)

    def _from_first(self, value):
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]

    def slice(self, count):
        """This process's share of `count` things, a multiple of the number of processes."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum(self, tensor):
        """The sum of a tensor over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def map(self, function, split):
        """`function(split)`, a row an image, where every process works on a share of the images.

        Shares are of one length: the last ones repeat images, whose rows are dropped.
        """
        if self.size == 1:
            return function(split)
        share = -(-len(split) // self.size)
        mine = torch.arange(self.rank * share, (self.rank + 1) * share).clamp(max=len(split) - 1)
        rows = function(split.subset(mine)).contiguous()
        everyones = [torch.empty_like(rows) for _ in range(self.size)]
        distributed.all_gather(everyones, rows)
        return torch.cat(everyones)[: len(split)]

    def share_statistics(self, model):
        """Make a network's batch normalisation see the batch of all processes; its weights stay the same tensors."""
        if self.size > 1:
            for module in model.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = SharedBatchNorm2d
        return model

    def parallel(self, model):
        """The network with its gradients averaged over the processes."""
        return DistributedDataParallel(model) if self.size > 1 else model


class Agreement:
    """The largest of the numbers that the processes name, a number each at every call.

    With several processes it is known one call later, so that nobody waits for the others.
    """

    def __init__(self, job):
        self.job = job
        self.asked = None

    def __call__(self, number):
        if self.job.size == 1:
            return number
        asked, answer = self.asked, torch.tensor(number)
        self.asked = (distributed.all_reduce(answer, distributed.ReduceOp.MAX, async_op=True), answer)
        if asked is None:
            return 0
        asked[0].wait()
        return asked[1].item()


class AllReduce(torch.autograd.Function):
    """The sum over all processes, through which gradients flow back to each."""

    @staticmethod
    def forward(context, tensor):
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(context, gradient):
        return AllReduce.forward(context, gradient)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batch of all processes, as `nn.SyncBatchNorm`, which needs a GPU, does it."""

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

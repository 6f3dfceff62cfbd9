"""Several processes that train one network, each on its part of every batch.

The steps are those of one process, to rounding: the loader gives the same global batches, loss
and gradients are means over the global batch, batch norm takes its statistics over all ranks, and
what is drawn at random is drawn for the global batch, of which each rank takes its rows.

Axes: B row of a batch, C channel, F everything else, S two sums.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.plan import LANES
from training.models.layers import ByteDropout

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of a training, as one of them sees it; alone where nothing is said.

    Attributes
    ----------
    rank, world_size
        Which process this is, of how many.
    local_rank, local_world_size
        The same among those of this machine, which share its memory.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def whole_batch(self, rows: Tensor, part: slice, n_rows: int) -> Tensor:
        """Put together the rows that the ranks have of a batch; gradients return to all of them.

        Parameters
        ----------
        rows
            This rank's rows, of a floating type.
        part, n_rows
            Which rows of the batch, of ``n_rows``, these are.

        Returns
        -------
        Tensor
            (n_rows, ...), the same on every rank.
        """
        if self.world_size == 1:
            return rows
        before = rows.new_zeros((part.start, *rows.shape[1:]))
        after = rows.new_zeros((n_rows - part.stop, *rows.shape[1:]))
        # A sum, for ranks may have different numbers of rows, or none.
        whole: Tensor = _Sum.apply(torch.cat([before, rows, after]))  # type: ignore[no-untyped-call]
        return whole

    def agreed(self, value: _T) -> _T:
        """Return the first rank's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Concatenate each array over all ranks, in their order."""
        if self.world_size == 1:
            return list(arrays)
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, list(arrays))
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def exchanged(self, part: Tensor, sizes: Sequence[int]) -> Tensor:
        """Concatenate rows of all ranks, in their order, on the device that they are on.

        Parameters
        ----------
        part
            This rank's rows.
        sizes
            Rows of every rank.
        """
        if self.world_size == 1:
            return part
        largest = max(sizes)
        padded = part.new_empty((largest, *part.shape[1:]))
        padded[: len(part)] = part
        # As bytes: not every backend knows unsigned integers of 16 bits.
        sent = padded.view(torch.uint8)
        received = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(received, sent)
        parts = [r.view(part.dtype)[:n] for r, n in zip(received, sizes, strict=True)]
        return torch.cat(parts)


ALONE = Team()


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Team]:
    """Join the processes that ``torchrun`` started, if it did; leave them at the end.

    Parameters
    ----------
    environment
        Where ``torchrun`` says who is who.

    Raises
    ------
    InvalidInputError
        If the number of processes does not divide the lanes of a batch.
    """
    world_size = int(environment.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield ALONE
        return
    if LANES % world_size:
        raise InvalidInputError(
            f"{world_size} processes do not divide the {LANES} lanes of a batch; start 1, 2, 4 or 8"
        )
    team = Team(
        int(environment["RANK"]),
        world_size,
        int(environment["LOCAL_RANK"]),
        int(environment.get("LOCAL_WORLD_SIZE", world_size)),
    )
    if torch.cuda.is_available():
        torch.cuda.set_device(team.local_rank)
    store, rank, _ = next(rendezvous("env://"))
    # The agent's store outlives a restart, with the addresses of ranks that are no more.
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=world_size,
    )
    try:
        yield team
    finally:
        dist.destroy_process_group()


def synchronized(network: nn.Module, device: torch.device) -> None:
    """Let every batch norm of a network take its statistics over all ranks, in place.

    Parameters, their names and the shapes of the state stay the same. torch's own layer is for
    GPUs alone.

    Raises
    ------
    InvalidInputError
        If a norm does more than torch's own, as one with an activation, which would be lost.
    """
    for name, child in network.named_children():
        if not isinstance(child, nn.modules.batchnorm._BatchNorm):
            synchronized(child, device)
        elif type(child) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            raise InvalidInputError(
                f"layer {name!r} is a {type(child).__name__}, which several processes cannot "
                f"synchronize; expected BatchNorm1d or BatchNorm2d: train in one process"
            )
        elif device.type == "cuda":
            convert: Callable[..., nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
            setattr(network, name, convert(child))
        else:
            kind = SynchronizedNorm2d if isinstance(child, nn.BatchNorm2d) else SynchronizedNorm1d
            norm = kind(child.num_features, child.eps, child.momentum)
            norm.weight, norm.bias = child.weight, child.bias
            norm.load_state_dict(child.state_dict())
            setattr(network, name, norm.to(device).train(child.training))


def share_dropout(network: nn.Module, part: slice, n_rows: int) -> None:
    """Say which rows of a global batch of ``n_rows`` the next pass of this rank is of."""
    for module in network.modules():
        if isinstance(module, ByteDropout):
            module.part, module.n_rows = part, n_rows


class _Sum(torch.autograd.Function):
    """Sum over all ranks; on the way back, the sum of what all ranks make of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _Normalize(torch.autograd.Function):
    """Batch norm over the rows of all ranks: two sums on the way there, one on the way back."""

    @staticmethod
    def forward(
        ctx: Any, x_BCF: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        over, along = _axes(x_BCF)
        x32_BCF = x_BCF.float()
        n_here = x32_BCF.new_tensor([x_BCF.numel() / x_BCF.shape[1]])
        n_and_sum = torch.cat([n_here, x32_BCF.sum(over)])
        dist.all_reduce(n_and_sum)
        n, mean_C = n_and_sum[0], n_and_sum[1:] / n_and_sum[0]
        # Of the centered values: the mean of squares less the square of the mean loses digits.
        centered_BCF = x32_BCF - mean_C.view(along)
        variance_C = centered_BCF.square().sum(over)
        dist.all_reduce(variance_C)
        variance_C /= n
        scale_C = torch.rsqrt(variance_C + eps)
        ctx.save_for_backward(x_BCF, weight_C, mean_C, scale_C, n)
        y_BCF = centered_BCF.mul_((scale_C * weight_C).view(along)).add_(bias_C.view(along))
        ctx.mark_non_differentiable(mean_C, variance_C, n)
        return y_BCF.to(x_BCF.dtype), mean_C, variance_C, n

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_BCF, weight_C, mean_C, scale_C, n = ctx.saved_tensors
        over, along = _axes(x_BCF)
        dy_BCF = grad_outputs[0].float()
        z_BCF = (x_BCF.float() - mean_C.view(along)).mul_(scale_C.view(along))
        # The parameters' gradients are of this rank: they are added to the others' like all.
        dbias_C, dweight_C = dy_BCF.sum(over), (dy_BCF * z_BCF).sum(over)
        means_SC = torch.stack([dbias_C, dweight_C])
        dist.all_reduce(means_SC)
        means_SC /= n
        dx_BCF = dy_BCF - means_SC[0].view(along) - z_BCF.mul_(means_SC[1].view(along))
        return (
            dx_BCF.mul_((scale_C * weight_C).view(along)).to(x_BCF.dtype),
            dweight_C,
            dbias_C,
            None,
        )


def _axes(x_BCF: Tensor) -> tuple[list[int], list[int]]:
    """Axes that statistics are taken over, and the shape of one value a channel."""
    return [axis for axis in range(x_BCF.dim()) if axis != 1], [1, -1] + [1] * (x_BCF.dim() - 2)


class _SynchronizedNorm(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        y_BCF: Tensor
        y_BCF, mean_C, variance_C, n = _Normalize.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = self.momentum or 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean_C, momentum)
            self.running_var.lerp_(variance_C * n / (n - 1), momentum)
        return y_BCF


class SynchronizedNorm1d(_SynchronizedNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` with statistics over the rows of all ranks."""


class SynchronizedNorm2d(_SynchronizedNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with statistics over the rows of all ranks."""

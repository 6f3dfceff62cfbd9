"""Parts the models share: normalization of stored bands, convolution blocks, cheap dropout.

Axes: B row of a batch, C band (or channel inside a network), Y and X pixel, F feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigearth_cube.errors import InvalidInputError

BATCH_NORM_EPS: Final = 1e-3
BATCH_NORM_MOMENTUM: Final = 0.01
"""The released K-BranchCNN code: epsilon 1e-3, momentum .99 (torch counts the other way)."""


class PerView(NamedTuple):
    """What a network of several views says of each.

    Attributes
    ----------
    logits_BVC
        A logit a class.
    features_BVF
        What the head made them of.
    """

    logits_BVC: Tensor
    features_BVF: Tensor


class Network(nn.Module):
    """What training, evaluation and embedding ask of a network.

    Attributes
    ----------
    groups
        Groups of the cube it reads, e.g. ``("s2/r10m", "s2/r20m", "s2/r60m")``.
    n_features
        Length of what `features` gives.
    head
        From features to logits; it ends in a fully connected layer, an output a class.
    frozen
        Whether the head alone is trained; see `freeze`.
    """

    groups: tuple[str, ...]
    n_features: int
    head: nn.Module
    frozen: bool = False

    def features(self, images: Mapping[str, Tensor]) -> Tensor:
        """Describe each patch by one vector: features_BF.

        Parameters
        ----------
        images
            Group to DN_BCYX as the cube stores them: uint16, bands in the cube's order.
        """
        raise NotImplementedError

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """Score every class: logits_BC of what `features` takes."""
        logits_BC: Tensor = self.head(self.features(images))
        return logits_BC

    def outputs(self, images: Mapping[str, Tensor]) -> Tensor | PerView:
        """Give training what it learns from: logits_BC, or what is said of each view."""
        logits_BC: Tensor = self(images)
        return logits_BC

    def encoders(self) -> dict[str, Encoder]:
        """Return what embeds patches, by what the name of its embeddings ends in.

        Most networks have one encoder; the vectors of several can be compared with each other.
        """
        return {"": Encoder(self, self.groups, self.n_features, self.features)}

    def freeze(self) -> None:
        """Train the head alone: all else keeps its weights and its batch statistics."""
        self.frozen = True
        for name, module in self.named_children():
            if name != "head":
                module.requires_grad_(requires_grad=False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:  # as torch has it
        """Set the mode of the modules that are trained; frozen ones stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            for name, module in self.named_children():
                if name != "head":
                    module.eval()
        return self

    def load_weights(self, source: str) -> None:
        """Begin with weights of another training; see ``backbones.Backbone``.

        Raises
        ------
        InvalidInputError
            If nobody publishes weights of such a network.
        """
        raise InvalidInputError(
            f"there are no published weights of a {type(self).__name__} to begin with ({source}); "
            f"leave them out"
        )


class Encoder(nn.Module):
    """From patches to vectors: a network, or a part of one, that takes its groups in order.

    Parameters
    ----------
    network
        Whose weights they are.
    groups
        What it reads.
    n_features
        Length of a vector.
    describe
        From group to DN_BCYX, to features_BF.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: tuple[str, ...],
        n_features: int,
        describe: Callable[[Mapping[str, Tensor]], Tensor],
    ) -> None:
        super().__init__()
        self.network = network
        self.groups = groups
        self.n_features = n_features
        self._describe = describe

    def forward(self, *images: Tensor) -> Tensor:
        """Describe patches, given group by group as the cube stores them: features_BF."""
        return self._describe(dict(zip(self.groups, images, strict=True)))


class BandNormalize(nn.Module):
    """Pick bands by name from stored DN and z-score each of them.

    The statistics are buffers, so a checkpoint carries the normalization it was trained with.

    Parameters
    ----------
    stored
        Names along the band axis of what comes in, in order.
    wanted
        Names along the band axis of what goes out, in order.
    statistics
        Band name to (mean, standard deviation), in DN.

    Raises
    ------
    InvalidInputError
        If a wanted band is not stored or has no statistics.

    Examples
    --------
    >>> layer = BandNormalize(("B02", "B03"), ("B03", "B02"), {"B02": (1, 2), "B03": (3, 4)})
    >>> layer(torch.tensor([[[[5]], [[7]]]], dtype=torch.uint16)).flatten().tolist()
    [1.0, 2.0]
    """

    order: Tensor
    mean_C11: Tensor
    scale_C11: Tensor

    def __init__(
        self,
        stored: Sequence[str],
        wanted: Sequence[str],
        statistics: Mapping[str, tuple[float, float]],
    ) -> None:
        super().__init__()
        for band in wanted:
            if band not in stored:
                raise InvalidInputError(f"band {band!r} is not stored; found {', '.join(stored)}")
            if band not in statistics:
                raise InvalidInputError(f"band {band!r} has no statistics to normalize it with")
        mean, std = zip(*(statistics[band] for band in wanted), strict=True)
        self.register_buffer("order", torch.tensor([stored.index(band) for band in wanted]))
        self.register_buffer("mean_C11", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("scale_C11", 1 / torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, dn_BCYX: Tensor) -> Tensor:
        """Turn DN of any dtype, uint16 as stored too, into float32 z-scores."""
        x_BCYX = dn_BCYX.to(torch.float32)[:, self.order]
        return x_BCYX.sub_(self.mean_C11).mul_(self.scale_C11)


class _Mask(torch.autograd.Function):
    """Multiply by a boolean mask and a scale, keeping one byte an element for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return (x * keep).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return (grad_outputs[0] * keep).mul_(ctx.scale), None, None


class ByteDropout(nn.Module):
    """Dropout that spends one random byte an element.

    On a CPU ``torch.dropout`` draws one float an element and takes a fifth of a TB-CNN training
    step; here eight elements share one 64-bit draw, which is twenty times cheaper. A byte has 256
    values, so the probability is a multiple of 1/256: .25 and .5 are exact.

    Parameters
    ----------
    p
        Probability of zeroing an element; a multiple of 1/256 in [0, 1).
    generator
        Source of randomness; torch's default of the input's device where None.

    Attributes
    ----------
    part, n_rows
        Where several processes share a batch of ``n_rows``: which rows of it the input is. The
        draw is then that of the whole batch, so a patch loses the same elements however many
        processes there are. None where the input is the batch.

    Raises
    ------
    InvalidInputError
        If ``p`` is out of range or not a multiple of 1/256.
    """

    def __init__(self, p: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not 0 <= p < 1 or (p * 256) % 1:
            raise InvalidInputError(f"dropout of {p}; expected a multiple of 1/256 in [0, 1)")
        self.p = p
        self.generator = generator
        self.part: slice | None = None
        self.n_rows = 0

    def extra_repr(self) -> str:
        """Show the probability where the module is printed."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements and scale the rest by 1 / (1 - p); the identity outside training."""
        if not self.training or not self.p:
            return x
        part, n_rows = (slice(0, len(x)), len(x)) if self.part is None else (self.part, self.n_rows)
        if torch.compiler.is_compiling():
            # Drawn within the fused pass: no byte of it is ever written to memory.
            keep = torch.rand((n_rows, *x.shape[1:]), device=x.device)[part] >= self.p
            return x * keep * (1 / (1 - self.p))
        per_row = math.prod(x.shape[1:])
        draws = torch.empty(-(-n_rows * per_row // 8), dtype=torch.int64, device=x.device)
        draws.random_(-(2**63), None, generator=self.generator)  # all 64 bits; the default is 63
        bytes_ = draws.view(torch.uint8)[part.start * per_row : part.stop * per_row]
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            b, c, y, x_ = x.shape  # a mask in the layout of the input: mixed layouts cost 5x
            bytes_ = bytes_.view(b, y, x_, c).permute(0, 3, 1, 2)
        else:
            bytes_ = bytes_.view(x.shape)
        out: Tensor = _Mask.apply(x, bytes_ >= int(self.p * 256), 1 / (1 - self.p))  # type: ignore[no-untyped-call]
        return out


class ConvBlock(nn.Sequential):
    """Convolution of the same size, batch norm, ReLU, and where asked max-pool and dropout.

    An even kernel is padded on the right and at the bottom, as TensorFlow's "same" does.

    Parameters
    ----------
    in_channels, out_channels, kernel_size
        Of the convolution, which has a bias and Xavier weights.
    pool
        Whether a 2x2 max-pool of stride 2 follows.
    dropout
        Probability of the dropout that follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        pool: bool = False,
        dropout: float = 0.0,
    ) -> None:
        before, after = (kernel_size - 1) // 2, kernel_size // 2
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=before if before == after else 0
        )
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        super().__init__(
            *([] if before == after else [nn.ZeroPad2d((before, after, before, after))]),
            conv,
            nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM),
            *([nn.MaxPool2d(2)] if pool else []),  # max and ReLU commute; ReLU then sees a quarter
            nn.ReLU(inplace=True),
            *([ByteDropout(dropout)] if dropout else []),
        )


class DenseBlock(nn.Sequential):
    """Fully connected layer with Xavier weights, batch norm and ReLU."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(
            dense(in_features, out_features),
            nn.BatchNorm1d(out_features, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM),
            nn.ReLU(inplace=True),
        )


def dense(in_features: int, out_features: int) -> nn.Linear:
    """Fully connected layer with Xavier weights and zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@contextmanager
def measuring_batch_norm(network: nn.Module) -> Iterator[None]:
    """Measure the statistics of batch norm afresh, on what passes forward in the body.

    All but batch norm is in evaluation mode there, so the statistics are those of a network that
    drops nothing; each is the mean over the batches. The network is left in evaluation mode.
    """
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the mean over all batches
        norm.train()
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def set_prior_bias(network: Network, labels_NC: NDArray[np.uint8]) -> None:
    """Start every output at the log-odds of its class, so that no step is spent on learning them.

    Parameters
    ----------
    network
        With C outputs.
    labels_NC
        Labels of the rows to train on, 0 or 1. Half a patch more is counted with and without each
        class, so that one that is never there has finite odds.
    """
    *_, last = (module for module in network.head.modules() if isinstance(module, nn.Linear))
    n_with_C = torch.from_numpy(labels_NC.sum(0, dtype=np.int64)) + 0.5
    n_without_C = len(labels_NC) + 1 - n_with_C
    with torch.no_grad():
        last.bias.copy_(torch.log(n_with_C / n_without_C))

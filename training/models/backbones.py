"""Backbones that others published, over stacked bands, with ImageNet weights by choice.

BN-Inception, ResNet and VGG are pytorchcv's, which installs beside any build of torch. Names such
as ``timm:convnextv2_base`` are timm's, which needs a torchvision of the same build as torch.

Of ImageNet weights only the convolutional trunk is taken: what follows it learns other classes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from bigearth_cube.errors import InvalidInputError, NotFoundError, StorageError
from bigearth_cube.storage import Storage, normalized_url
from training.models.layers import dense
from training.models.stacked import INPUTS, RGB, StackedBands, StackedNetwork, Statistics

IMAGENET: Final = "imagenet"
"""Stands for weights of ImageNet, as the library that has the backbone offers them."""
TIMM: Final = "timm:"
INCEPTION_PX: Final = 224
"""Side of the photographs that BN-Inception was trained on; frozen features know no other scale."""
RESNETS: Final = ("resnet50", "resnet101", "resnet152")
VGGS: Final = ("vgg16", "vgg19")


class Backbone(StackedNetwork):
    """A published backbone with an output layer of its own.

    Parameters
    ----------
    architecture
        Name of the backbone in its library, e.g. ``"resnet50"`` or ``"timm:convnextv2_base"``.
    bands, trunk, n_features, n_classes
        As in ``StackedNetwork``; the head is one fully connected layer.
    pretrained
        The part of the trunk that published weights fit.
    prefix
        What the names of those weights begin with in a published file.
    """

    def __init__(
        self,
        architecture: str,
        bands: StackedBands,
        trunk: nn.Module,
        *,
        n_features: int,
        n_classes: int,
        pretrained: nn.Module,
        prefix: str,
    ) -> None:
        super().__init__(bands, trunk, dense(n_features, n_classes), n_features)
        self.architecture = architecture
        self._prefix = prefix
        # A tuple, so that torch does not see the same module twice.
        self._pretrained = (pretrained,)

    def load_weights(self, source: str) -> None:
        """Begin with weights of another training.

        Parameters
        ----------
        source
            Path or URL of a file with the state of the same architecture, as its library saves it;
            or ``"imagenet"`` for the library's own download, kept below the home folder.

        Raises
        ------
        NotFoundError
            If there is no such file.
        StorageError
            If it cannot be read or downloaded.
        InvalidInputError
            If it holds no such weights.

        Notes
        -----
        A first convolution over other bands than red, green and blue takes the three kernels in
        turn, scaled so that equal bands give what they gave (timm does the same).
        """
        (target,) = self._pretrained
        if source == IMAGENET and self.architecture.startswith(TIMM):
            made = _timm_model(self.architecture, self.bands.n_bands, pretrained=True)
            target.load_state_dict(made.state_dict())
            return
        where = _downloaded(self.architecture) if source == IMAGENET else source
        found = {
            name.removeprefix(self._prefix): values
            for name, values in _read_state(where).items()
            if name.startswith(self._prefix)
        }
        wanted = target.state_dict()
        taken = {}
        for name, own in wanted.items():
            if name not in found:
                raise InvalidInputError(
                    f"{where} has no {self._prefix}{name}; expected weights of "
                    f"{self.architecture} as its library saves them"
                )
            taken[name] = _over_bands(found[name], own)
            if taken[name].shape != own.shape:
                raise InvalidInputError(
                    f"{where}: {self._prefix}{name} is {tuple(found[name].shape)}, expected "
                    f"{tuple(own.shape)}; expected weights of {self.architecture}"
                )
        target.load_state_dict(taken)


def inception_v2(n_classes: int, statistics: Statistics) -> Backbone:
    """Build BN-Inception (Ioffe & Szegedy, 2015) over red, green and blue, scaled to 224 pixels."""
    net = _of_pytorchcv("bninception", "bninception", in_channels=3)
    bands = StackedBands(RGB, statistics, INCEPTION_PX)
    return _pooled("bninception", net, bands, n_classes)


def resnet(architecture: str, inputs: str, n_classes: int, statistics: Statistics) -> Backbone:
    """Build a ResNet (He et al., 2016); features are averaged over the patch."""
    bands = StackedBands(INPUTS[inputs], statistics)
    net = _of_pytorchcv("resnet", architecture, in_channels=bands.n_bands)
    return _pooled(architecture, net, bands, n_classes)


def vgg(architecture: str, inputs: str, n_classes: int, statistics: Statistics) -> Backbone:
    """Build a VGG (Simonyan & Zisserman, 2015); its two layers of 4,096 see 3 x 3 pixels.

    Photographs of 224 pixels leave 7 x 7, so the weights of those layers fit ImageNet alone.
    """
    from pytorchcv.models.vgg import VGGDense

    bands = StackedBands(INPUTS[inputs], statistics)
    net = _of_pytorchcv("vgg", architecture, in_channels=bands.n_bands)
    n_features = 4096
    trunk = nn.Sequential(
        net.features,
        nn.Flatten(),
        VGGDense(512 * 3 * 3, n_features),
        VGGDense(n_features, n_features),
    )
    return Backbone(
        architecture,
        bands,
        trunk,
        n_features=n_features,
        n_classes=n_classes,
        pretrained=net.features,
        prefix="features.",
    )


def timm_network(name: str, n_classes: int, statistics: Statistics) -> Backbone:
    """Build a model of timm, ``timm:NAME`` or ``timm:NAME-INPUTS``; Sentinel-2 if none are named.

    Raises
    ------
    InvalidInputError
        If timm cannot be imported here, or has no such model.
    """
    architecture, inputs = name, "s2"
    for known in sorted(INPUTS, key=len, reverse=True):
        if name.endswith(f"-{known}"):
            architecture, inputs = name.removesuffix(f"-{known}"), known
            break
    bands = StackedBands(INPUTS[inputs], statistics)
    trunk = _timm_model(architecture, bands.n_bands)
    return Backbone(
        architecture,
        bands,
        trunk,
        n_features=int(trunk.num_features),
        n_classes=n_classes,
        pretrained=trunk,
        prefix="",
    )


BACKBONES: Final[dict[str, Callable[[int, Statistics], Backbone]]] = {
    "inception-v2": inception_v2,
    **{f"{name}-{inputs}": partial(resnet, name, inputs) for name in RESNETS for inputs in INPUTS},
    **{f"{name}-{inputs}": partial(vgg, name, inputs) for name in VGGS for inputs in INPUTS},
}


def cached_weights(architecture: str) -> Path:
    """Where pytorchcv keeps the ImageNet weights of an architecture once it has them."""
    from pytorchcv.models.model_store import get_model_name_suffix_data

    error, sha1, _ = get_model_name_suffix_data(architecture)
    return Path.home() / ".torch" / "models" / f"{architecture}-{error}-{sha1[:8]}.pth"


def _pooled(architecture: str, net: Any, bands: StackedBands, n_classes: int) -> Backbone:
    """Average over whatever is left of the patch, in place of the 7 x 7 of a photograph."""
    features: nn.Module = net.features
    features.final_pool = nn.AdaptiveAvgPool2d(1)
    n_features = int(net.output.in_features)
    return Backbone(
        architecture,
        bands,
        nn.Sequential(features, nn.Flatten()),
        n_features=n_features,
        n_classes=n_classes,
        pretrained=features,
        prefix="features.",
    )


def _of_pytorchcv(module: str, architecture: str, **arguments: Any) -> Any:
    # One module of the library: its index of models imports all of them.
    make = getattr(importlib.import_module(f"pytorchcv.models.{module}"), architecture)
    return make(**arguments)


def _timm_model(architecture: str, n_bands: int, *, pretrained: bool = False) -> Any:
    try:
        timm = importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # a torchvision of another build raises the latter
        reason = str(error).splitlines()[0]
        raise InvalidInputError(
            f"model {architecture!r} needs timm, and a torchvision of the same build as torch "
            f"{torch.__version__} ({reason}); install them, or choose a model without 'timm:'"
        ) from None
    name = architecture.removeprefix(TIMM)
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=n_bands, num_classes=0)
    except RuntimeError as error:
        raise InvalidInputError(
            f"timm has no model {name!r} ({error}); timm.list_models() has the names"
        ) from None


def _downloaded(architecture: str) -> str:
    from pytorchcv.models.model_store import get_model_file

    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and results go to stdout
            return str(get_model_file(architecture, str(cached_weights(architecture).parent)))
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise StorageError(
            f"the ImageNet weights of {architecture} cannot be downloaded "
            f"({type(error).__name__}); put them at {cached_weights(architecture)}"
        ) from None


def _read_state(where: str) -> Mapping[str, Tensor]:
    folder, _, key = normalized_url(where).rpartition("/")
    try:
        data = Storage(folder).read(key)
    except NotFoundError:
        raise NotFoundError(f"weights missing: {where}") from None
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
        state = None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InvalidInputError(f"{where} holds no weights; expected names and tensors alone")
    return state


def _over_bands(values: Tensor, own: Tensor) -> Tensor:
    """Spread the kernels of a first convolution over as many bands as ours has."""
    n_bands = own.shape[1] if own.dim() == 4 else 0
    if values.dim() != 4 or values.shape[1] == n_bands or values.shape[1] != 3:
        return values
    repeated = values.repeat(1, -(-n_bands // 3), 1, 1)[:, :n_bands]
    return repeated * (3 / n_bands)

"""Recipes: functions that return a whole config.

A recipe is a claim about what works, so it stands in one place, complete; a run may override
single fields, and its checkpoint then says so by carrying the whole config. A name alone is what
was published; with ``-small`` behind it, the same network trained our way on a small machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from bigearth_cube.errors import InvalidInputError
from training.config import Config
from training.models.backbones import IMAGENET, RESNETS, TIMM, VGGS
from training.models.stacked import INPUTS

SMALL: Final = "-small"
REBEN_PATIENCE: Final = 10
"""Epochs without a better one; the paper stops early, and does not say after how many."""


def tb_cnn(labels: str) -> Config:
    """TB-CNN as its authors trained it: their released code, with the published settings.

    Adam 1e-3, batch 1000, 100 epochs, sigmoid cross-entropy, threshold .5, seed 42; no
    schedule, no augmentation.
    """
    return Config(
        recipe="tb-cnn",
        model="tb-cnn",
        labels=labels,
        batch_size=1000,
        epochs=100,
        learning_rate=1e-3,
        seed=42,
    )


def tb_cnn_mm(labels: str) -> Config:
    """TB-CNN with a fourth branch for Sentinel-1, trained like the one of three.

    Ours: nobody published such a network, but the settings are theirs.
    """
    return replace(tb_cnn(labels), recipe="tb-cnn-mm", model="tb-cnn-mm")


def tb_cnn_contrastive(labels: str) -> Config:
    """TB-CNN for Sentinel-2 and one for Sentinel-1, whose features are made comparable.

    Ours: the settings of `tb_cnn`, and beside the labels of each view a contrast between the
    views: supervised (Khosla et al. 2020, whose temperature .1 it is), symmetric as in CLIP
    (Radford et al. 2021); see ``losses.contrast_of_views``.
    """
    return replace(
        tb_cnn(labels),
        recipe="tb-cnn-contrastive",
        model="tb-cnn-contrastive",
        contrast=1.0,
        temperature=0.1,
    )


def s_cnn_rgb(labels: str) -> Config:
    """S-CNN of three bands, the 2019 paper's: 100 epochs at 1e-3.

    Optimizer and batch are not stated there; they are those of the authors' released code.
    """
    return replace(tb_cnn(labels), recipe="s-cnn-rgb", model="s-cnn-rgb")


def s_cnn_all(labels: str) -> Config:
    """S-CNN of twelve bands, the 2019 paper's; see `s_cnn_rgb`."""
    return replace(tb_cnn(labels), recipe="s-cnn-all", model="s-cnn-all")


def inception_v2(labels: str) -> Config:
    """BN-Inception of ImageNet, frozen, with a new last layer: 100 epochs at 1e-3, the 2019 paper's.

    Optimizer and batch as in `s_cnn_rgb`.
    """
    return replace(
        tb_cnn(labels),
        recipe="inception-v2",
        model="inception-v2",
        weights=IMAGENET,
        frozen=True,
    )


def bigearthnet_mm(model: str, labels: str) -> Config:
    """Train a ResNet or VGG from scratch as BigEarthNet-MM did (arXiv 2105.07921): Adam 1e-3.

    100 epochs and batch 512 are ours: they are those of reBEN, as the paper's are not known here.
    """
    return Config(
        recipe=model,
        model=model,
        labels=labels,
        batch_size=512,
        epochs=100,
        learning_rate=1e-3,
        precision="auto",
        channels_last=True,
        seed=42,
    )


def reben(model: str, labels: str, recipe: str) -> Config:
    """Train any backbone as reBEN did (arXiv 2407.03653).

    AdamW 1e-3 with decay .01, batch 512, up to 100 epochs, linear warm-up of 1,000 steps, then
    cosine; early stop on the macro average precision of validation, with a patience that is ours;
    threshold .5. Its horizontal and vertical flips are our eight symmetries.
    """
    return replace(
        bigearthnet_mm(model, labels),
        recipe=recipe,
        weight_decay=0.01,
        schedule="cosine",
        warmup_steps=1000,
        monitor="ap_macro",
        patience=REBEN_PATIENCE,
        augment=True,
    )


def tb_cnn_small(labels: str) -> Config:
    """TB-CNN on some thousand patches in minutes on two CPU cores.

    Batch 64 is the fastest there (128 and 256 are slower). bfloat16, where the CPU computes in
    it, gives 1.7 times the patches/s of float32. Turned and mirrored: without it the validation
    loss rises after the fifth of nine epochs over 2,400 patches. There a prior bias gives a test
    F1 of .691 after .655, and batch norm measured without dropout .727.
    """
    return Config(
        recipe="tb-cnn-small",
        model="tb-cnn",
        labels=labels,
        batch_size=64,
        epochs=9,
        learning_rate=1e-3,
        schedule="cosine",
        warmup=0.05,
        batch_norm_patches=512,
        prior_bias=True,
        augment=True,
        tune_threshold=True,
        precision="auto",
        channels_last=True,
        seed=42,
    )


def small(published: Callable[[str], Config], labels: str) -> Config:
    """Train any other network like `tb_cnn_small`; what it begins with stays as published.

    Batch norm is measured afterwards where dropout comes before it: not in published backbones.
    """
    config = published(labels)
    return replace(
        tb_cnn_small(labels),
        recipe=f"{config.recipe}{SMALL}",
        model=config.model,
        weights=config.weights,
        frozen=config.frozen,
        contrast=config.contrast,
        temperature=config.temperature,
        batch_norm_patches=512 if config.model.startswith(("tb-cnn", "s-cnn")) else 0,
    )


def _published() -> dict[str, Callable[[str], Config]]:
    named: dict[str, Callable[[str], Config]] = {
        "tb-cnn": tb_cnn,
        "tb-cnn-mm": tb_cnn_mm,
        "tb-cnn-contrastive": tb_cnn_contrastive,
        "s-cnn-rgb": s_cnn_rgb,
        "s-cnn-all": s_cnn_all,
        "inception-v2": inception_v2,
    }
    for backbone in (*RESNETS, *VGGS):
        for inputs in INPUTS:
            name = f"{backbone}-{inputs}"
            named[name] = partial(bigearthnet_mm, name)
    for inputs in INPUTS:
        name = f"resnet50-{inputs}"
        named[f"reben-{name}"] = partial(reben, name, recipe=f"reben-{name}")
    return named


PUBLISHED: Final = _published()
RECIPES: Final[dict[str, Callable[[str], Config]]] = {
    **PUBLISHED,
    **{f"{name}{SMALL}": partial(small, function) for name, function in PUBLISHED.items()},
    "tb-cnn-small": tb_cnn_small,
}


def recipe(name: str, labels: str, **overrides: Any) -> Config:
    """Config of a recipe, with single fields replaced.

    Parameters
    ----------
    name
        Key of `RECIPES`; or ``timm:NAME``, which trains that model as reBEN did, or
        ``timm:NAME-small``.
    labels
        Label array to learn: ``"label_19"`` or ``"label_43"``.
    **overrides
        Fields of `Config`; None leaves a field as the recipe has it.

    Raises
    ------
    InvalidInputError
        If there is no such recipe or a value is out of range.

    Examples
    --------
    >>> recipe("tb-cnn", "label_43", epochs=2).batch_size
    1000
    """
    if name in RECIPES:
        function = RECIPES[name]
    elif name.startswith(TIMM):
        model = name.removesuffix(SMALL)
        function = partial(reben, model, recipe=model)
        if name != model:
            function = partial(small, function)
    else:
        raise InvalidInputError(f"unknown recipe {name!r}; choose one of: {', '.join(RECIPES)}")
    given = {field: value for field, value in overrides.items() if value is not None}
    return replace(function(labels), **given)

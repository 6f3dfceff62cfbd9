"""Everything that decides what a training gives, in one frozen value.

Two runs of the same config on the same selection, with the same number of threads on a CPU, end
with the same weights. What does not change them (the engine, where the run is written) is an
argument of ``fit`` instead, as is the device, whose sums round differently.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Final, Literal, get_args

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.plan import Shuffle
from bigearth_cube.nomenclature import NOMENCLATURES

Schedule = Literal["constant", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]
LossName = Literal["bce", "generalized"]
Monitor = Literal["f1", "ap_macro"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training, completely.

    Attributes
    ----------
    recipe
        Name of the recipe it came from.
    model
        Name of the network; key of ``training.models.MODELS``, or ``timm:NAME``.
    labels
        Label array: ``"label_19"`` or ``"label_43"``.
    weights
        What a backbone begins with: path or URL of published weights, or ``"imagenet"`` for those
        that its library downloads; nothing but chance where it is None.
    frozen
        Whether the last layer alone is trained.
    batch_size, epochs
        Patches in a step, passes over the selection; at least 1.
    learning_rate, weight_decay
        Of Adam; a weight decay above 0 is decoupled (AdamW).
    schedule
        ``"constant"``, or ``"cosine"``: linear warm-up, then down to 0 along a cosine.
    warmup, warmup_steps
        Share of all steps that warm up, 0 to 1, or their number, which goes before the share
        where it is not 0; of ``"cosine"`` only.
    clip_norm
        Norm that the gradient of a step is cut to; None leaves it as it is.
    loss, loss_q
        ``"bce"``, or ``"generalized"``: (1 - p^q) / q of the probability p given to what is true
        of a class, after Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep
        Neural Networks with Noisy Labels" (2018). Near q = 0 it is binary cross-entropy; at 1 the
        absolute error, which wrong labels move least and which learns slowest.
    class_balance
        0 weighs every label alike. Above, to below 1, presence and absence of each class are
        weighed by one over their effective number (1 - b^n) / (1 - b), after Cui et al.,
        "Class-Balanced Loss Based on Effective Number of Samples" (2019).
    contrast
        Weight of the contrast between views (``losses.contrast_of_views``) beside the loss of the
        labels of each view; above 0 only for a model of several views. Validation is of labels.
    temperature
        What cosines are divided by in that contrast; above 0.
    ema
        Decay a step of the averaged weights that are validated and kept as the best; None
        validates the weights themselves.
    monitor
        What decides which epoch is best on validation: sample-averaged F1, or the mean over
        classes of average precision.
    patience
        The run ends when so many epochs in a row were no better than the best; None runs all.
    shuffle
        ``"pool"``, or ``"exact"``: a true permutation, which reads chunks up to 64 times.
    batch_norm_patches
        Training patches on which batch norm's statistics are measured after each epoch, without
        dropout; 0 keeps the running averages of training. Dropout inflates those (Li et al.,
        "Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift",
        2019), and at the published momentum they lag by some 500 steps.
    prior_bias
        Whether the output starts at the log-odds of each class among the training rows, after
        Lin et al., "Focal Loss for Dense Object Detection" (2017); at even odds otherwise.
    augment
        Whether each patch is flipped and rotated at random (the eight symmetries of a square).
    tune_threshold
        Whether the threshold is chosen on validation; .5 otherwise.
    precision
        ``"auto"`` takes bfloat16 where the device computes in it and float32 elsewhere.
    channels_last
        Whether convolutions run with the band axis innermost.
    seed
        Of weights, order, dropout and augmentation.

    Raises
    ------
    InvalidInputError
        If a value is out of range.
    """

    recipe: str
    model: str
    labels: str
    batch_size: int
    epochs: int
    learning_rate: float
    weights: str | None = None
    frozen: bool = False
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup: float = 0.0
    warmup_steps: int = 0
    clip_norm: float | None = None
    loss: LossName = "bce"
    loss_q: float = 0.7
    class_balance: float = 0.0
    contrast: float = 0.0
    temperature: float = 0.1
    ema: float | None = None
    monitor: Monitor = "f1"
    patience: int | None = None
    shuffle: Shuffle = "pool"
    batch_norm_patches: int = 0
    prior_bias: bool = False
    augment: bool = False
    tune_threshold: bool = False
    precision: Precision = "float32"
    channels_last: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        choices: Final = {
            "labels": tuple(NOMENCLATURES),
            "schedule": get_args(Schedule),
            "precision": get_args(Precision),
            "loss": get_args(LossName),
            "monitor": get_args(Monitor),
            "shuffle": ("pool", "exact"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InvalidInputError(
                    f"unknown {name} {getattr(self, name)!r}; choose one of: {', '.join(allowed)}"
                )
        if self.batch_size < 1 or self.epochs < 1:
            raise InvalidInputError(
                f"batch size {self.batch_size} and {self.epochs} epochs make a run of zero steps; "
                f"expected at least 1 of each"
            )
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InvalidInputError(f"learning rate {self.learning_rate}; expected above 0")
        if self.batch_norm_patches < 0:
            raise InvalidInputError(
                f"batch norm measured on {self.batch_norm_patches} patches; expected 0 or more"
            )
        if self.frozen and self.batch_norm_patches:
            raise InvalidInputError(
                f"a frozen network keeps its batch statistics; expected batch_norm_patches 0, "
                f"found {self.batch_norm_patches}"
            )
        if not 0 <= self.warmup <= 1 or self.weight_decay < 0 or self.seed < 0:
            raise InvalidInputError(
                f"warmup {self.warmup}, weight decay {self.weight_decay}, seed {self.seed}; "
                f"expected 0 to 1, and neither of the others below 0"
            )

        if self.warmup_steps < 0 or not 0 <= self.class_balance < 1 or not 0 < self.loss_q <= 1:
            raise InvalidInputError(
                f"{self.warmup_steps} warm-up steps, class balance {self.class_balance}, loss q "
                f"{self.loss_q}; expected at least 0, 0 to below 1, and above 0 to 1"
            )
        if not 0 <= self.contrast < math.inf or not 0 < self.temperature < math.inf:
            raise InvalidInputError(
                f"contrast {self.contrast} at temperature {self.temperature}; expected at least 0, "
                f"and above 0"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InvalidInputError(f"gradients cut to norm {self.clip_norm}; expected above 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InvalidInputError(f"averaging decay {self.ema}; expected between 0 and 1")
        if self.patience is not None and self.patience < 1:
            raise InvalidInputError(f"patience of {self.patience} epochs; expected at least 1")

    def learning_rate_at(self, step: int, n_steps: int) -> float:
        """Learning rate of a step, counted from 0, of a run of ``n_steps``.

        Never 0 within the run, so that every step learns.

        Examples
        --------
        >>> config = Config(
        ...     recipe="", model="tb-cnn", labels="label_19", batch_size=1, epochs=1,
        ...     learning_rate=1.0, schedule="cosine", warmup=0.5,
        ... )
        >>> [round(config.learning_rate_at(step, 4), 2) for step in range(4)]
        [0.5, 1.0, 0.85, 0.15]
        """
        if self.schedule == "constant":
            return self.learning_rate
        n_warm = self.warmup_steps or round(self.warmup * n_steps)
        if step < n_warm:
            return self.learning_rate * (step + 1) / n_warm
        done = (step - n_warm + 0.5) / (n_steps - n_warm)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def to_json(self) -> str:
        """Write as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read what `to_json` wrote.

        Raises
        ------
        InvalidInputError
            If a field is unknown, or missing without a default: another version of the package
            wrote it.
        """
        values: dict[str, Any] = json.loads(text)
        known = {field.name: field.default is MISSING for field in fields(cls)}
        unknown = sorted(set(values) - set(known))
        missing = sorted(name for name, needed in known.items() if needed and name not in values)
        for what, names in (("unknown", unknown), ("missing", missing)):
            if names:
                raise InvalidInputError(
                    f"config field {names[0]!r} is {what}; another version of this package wrote it"
                )
        return cls(**values)

    def differences(self, other: Config) -> list[str]:
        """Name the fields that differ, with both values."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name} {mine[name]!r} / {theirs[name]!r}"
            for name in mine
            if mine[name] != theirs[name]
        ]

"""What a step minimizes: a value for each label of each patch, by the choice of a config.

Axes: B row of a batch, C class, N row of everything to train on, S absence and presence, V view,
F feature.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from training.config import LossName


class MultiLabelLoss(nn.Module):
    """The loss of each label of each patch, loss_BC, weighted; its mean is what is minimized.

    Parameters
    ----------
    name
        ``"bce"`` or ``"generalized"``; see `training.config.Config`.
    q
        Of ``"generalized"``: above 0, at most 1.
    weights_SC
        Weights of absence and of presence of each class, from `label_weights`; None weighs all
        labels alike.

    Examples
    --------
    >>> loss = MultiLabelLoss("generalized", q=1.0)  # the absolute error
    >>> loss(torch.tensor([[0.0, 20.0]]), torch.tensor([[1.0, 1.0]])).round(decimals=3).tolist()
    [[0.5, 0.0]]
    """

    weights_SC: Tensor | None

    def __init__(self, name: LossName, *, q: float = 0.7, weights_SC: Tensor | None = None) -> None:
        super().__init__()
        self.name, self.q = name, q
        self.register_buffer("weights_SC", weights_SC)

    def forward(self, logits_BC: Tensor, labels_BC: Tensor) -> Tensor:
        """Loss of logits against labels of 0 or 1, both float32."""
        if self.name == "bce":
            loss_BC = F.binary_cross_entropy_with_logits(logits_BC, labels_BC, reduction="none")
        else:
            # The log of the probability given to what is true: finite for any logit.
            log_p_BC = F.logsigmoid(torch.where(labels_BC > 0, logits_BC, -logits_BC))
            loss_BC = -torch.expm1(self.q * log_p_BC) / self.q
        if self.weights_SC is not None:
            loss_BC = loss_BC * torch.where(labels_BC > 0, self.weights_SC[1], self.weights_SC[0])
        return loss_BC


def contrast_of_views(
    features_NVF: Tensor,
    labels_NC: Tensor,
    temperature: float,
    anchors: slice = slice(None),
) -> Tensor:
    """Cross-entropy of finding, by one view of a patch, its like among another view of all.

    After Khosla et al., "Supervised Contrastive Learning" (2020), between views, each way, as CLIP
    has it: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
    (2021). Patches of several labels are alike in part: a positive is weighed by the Jaccard
    index of its labels and the anchor's, so the anchor's own other view weighs most.

    Parameters
    ----------
    features_NVF
        Of each view of the patches of a batch; only their directions count.
    labels_NC
        0 or 1.
    temperature
        What cosines are divided by.
    anchors
        Rows whose loss is asked for; the others are only found.

    Returns
    -------
    Tensor
        loss_B of the anchors: mean over ordered pairs of views.

    Examples
    --------
    >>> views_NVF = torch.eye(2)[:, None].expand(2, 2, 2)  # two patches, each view the same
    >>> [round(loss, 3) for loss in contrast_of_views(views_NVF, torch.eye(2), 1.0).tolist()]
    [0.313, 0.313]
    """
    shared_BN = labels_NC[anchors] @ labels_NC.T
    n_labels_N = labels_NC.sum(1)
    either_BN = n_labels_N[anchors, None] + n_labels_N - shared_BN
    # A patch is like itself, without labels too.
    itself_BN = torch.eye(len(labels_NC), device=labels_NC.device)[anchors]
    alike_BN = torch.maximum(shared_BN / either_BN.clamp(min=1), itself_BN)
    alike_BN = alike_BN / alike_BN.sum(1, keepdim=True)
    unit_VNF = F.normalize(features_NVF, dim=2).unbind(1)
    losses = [
        -(alike_BN * F.log_softmax(asks_NF[anchors] @ found_NF.T / temperature, dim=1)).sum(1)
        for asks_NF, found_NF in permutations(unit_VNF, 2)
    ]
    return torch.stack(losses).mean(0)


def label_weights(labels_NC: NDArray[np.uint8], balance: float) -> Tensor:
    """Weigh absence and presence of each class by one over their effective number.

    Parameters
    ----------
    labels_NC
        Labels of the rows to train on, 0 or 1.
    balance
        b of (1 - b^n) / (1 - b), above 0 and below 1: near 1 a label weighs one over the number
        of patches it has, near 0 all weigh alike.

    Returns
    -------
    Tensor
        weights_SC, float32, absence before presence. Over the given rows the labels of each class
        weigh 1 on average, so that a learning rate means the same.

    Examples
    --------
    >>> labels = np.array([[1], [0], [0], [0]], np.uint8)
    >>> [round(weight, 2) for weight in label_weights(labels, 0.999999).flatten().tolist()]
    [0.67, 2.0]
    """
    n_with_C = labels_NC.sum(0, dtype=np.int64)
    n_SC = np.stack([len(labels_NC) - n_with_C, n_with_C])
    effective_SC = -np.expm1(n_SC * np.log(balance)) / (1 - balance)
    weights_SC = 1 / np.maximum(effective_SC, 1)  # a label that no patch has weighs, unused, 1
    weights_SC *= len(labels_NC) / (weights_SC * n_SC).sum(0)
    return torch.from_numpy(weights_SC.astype(np.float32))

"""Losses: what they are near their limits, and what their weights add up to."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F  # noqa: N812

from training.losses import MultiLabelLoss, contrast_of_views, label_weights

logits = st.lists(st.floats(-30, 30), min_size=1, max_size=8)


@settings(max_examples=25)
@given(logits, st.integers(0, 255))
def test_a_generalized_loss_is_cross_entropy_near_0_and_the_absolute_error_at_1(
    values: list[float], bits: int
) -> None:
    logits_BC = torch.tensor([values], dtype=torch.float64)
    labels_BC = torch.tensor([[float(bits >> i & 1) for i in range(len(values))]]).double()
    near_0 = MultiLabelLoss("generalized", q=1e-7)(logits_BC, labels_BC)
    bce = F.binary_cross_entropy_with_logits(logits_BC, labels_BC, reduction="none")
    torch.testing.assert_close(near_0, bce, rtol=1e-4, atol=1e-6)
    at_1 = MultiLabelLoss("generalized", q=1.0)(logits_BC, labels_BC)
    torch.testing.assert_close(at_1, (labels_BC - logits_BC.sigmoid()).abs())
    torch.testing.assert_close(MultiLabelLoss("bce")(logits_BC, labels_BC), bce)


def test_a_wrong_label_pulls_less_at_a_generalized_loss() -> None:
    """The gradient of a label that the network is sure to be wrong."""
    pulls = []
    for loss in (MultiLabelLoss("bce"), MultiLabelLoss("generalized", q=0.7)):
        logit = torch.tensor([[6.0]], requires_grad=True)
        loss(logit, torch.zeros(1, 1)).sum().backward()
        assert logit.grad is not None
        pulls.append(logit.grad.item())
    assert pulls[0] == pytest.approx(1, abs=0.01)
    assert 0 < pulls[1] < 0.05


def test_logits_of_any_size_have_a_finite_loss_and_gradient() -> None:
    for name in ("bce", "generalized"):
        logits_BC = torch.tensor([[-1e4, 1e4, -1e4, 1e4]], requires_grad=True)
        loss_BC = MultiLabelLoss(name)(logits_BC, torch.tensor([[0.0, 0, 1, 1]]))  # type: ignore[arg-type]
        loss_BC.sum().backward()
        assert loss_BC.isfinite().all()
        assert logits_BC.grad is not None
        assert logits_BC.grad.isfinite().all()


def test_label_weights_near_1_are_the_balanced_ones_of_scikit_learn_and_near_0_all_alike() -> None:
    labels_NC = (np.random.default_rng(0).random((200, 5)) < [0.02, 0.1, 0.3, 0.5, 0.9]).astype(
        "u1"
    )
    weights_SC = label_weights(labels_NC, 1 - 1e-9)
    expected = [
        compute_class_weight("balanced", classes=np.array([0, 1]), y=labels_NC[:, c])
        for c in range(5)
    ]
    np.testing.assert_allclose(weights_SC.T, expected, rtol=1e-3)
    np.testing.assert_allclose(label_weights(labels_NC, 1e-9), np.ones((2, 5)), rtol=1e-6)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=6), st.floats(1e-6, 0.99999))
def test_weights_are_finite_and_the_labels_of_a_class_weigh_1_on_average(
    counts: list[int], balance: float
) -> None:
    labels_NC = (np.arange(50)[:, None] < np.array(counts)).astype(np.uint8)
    weights_SC = label_weights(labels_NC, balance).numpy()
    assert np.isfinite(weights_SC).all()
    weighed = np.where(labels_NC, weights_SC[1], weights_SC[0])
    np.testing.assert_allclose(weighed.mean(0), 1, rtol=1e-5)
    loss = MultiLabelLoss("bce", weights_SC=torch.from_numpy(weights_SC))
    plain = MultiLabelLoss("bce")
    logits_NC, hot_NC = torch.zeros(labels_NC.shape), torch.from_numpy(labels_NC).float()
    np.testing.assert_allclose(
        loss(logits_NC, hot_NC), plain(logits_NC, hot_NC) * torch.from_numpy(weighed), rtol=1e-5
    )


def plain_contrast(
    features_NVF: np.ndarray, labels_NC: np.ndarray, temperature: float
) -> np.ndarray:
    """The loss of each patch, a pair of vectors at a time."""
    n, n_views, _ = features_NVF.shape
    unit = features_NVF / np.linalg.norm(features_NVF, axis=2, keepdims=True)
    losses = np.zeros(n)
    for i in range(n):
        own = {c for c in range(labels_NC.shape[1]) if labels_NC[i, c]}
        for one in range(n_views):
            for other in set(range(n_views)) - {one}:
                scores = [float(unit[i, one] @ unit[j, other]) / temperature for j in range(n)]
                total = sum(np.exp(scores))
                weights = []
                for j in range(n):
                    theirs = {c for c in range(labels_NC.shape[1]) if labels_NC[j, c]}
                    either = own | theirs
                    weights.append(1.0 if i == j else len(own & theirs) / max(1, len(either)))
                losses[i] -= sum(
                    w * np.log(np.exp(s) / total) for w, s in zip(weights, scores, strict=True)
                ) / sum(weights)
    return losses / (n_views * (n_views - 1))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(2, 3), st.floats(0.05, 2))
def test_the_contrast_of_views_is_that_of_its_formula(
    seed: int, n: int, n_views: int, temperature: float
) -> None:
    rng = np.random.default_rng(seed)
    features_NVF = rng.random((n, n_views, 5))
    labels_NC = (rng.random((n, 4)) < 0.4).astype(float)  # some patches have no label at all
    found = contrast_of_views(
        torch.from_numpy(features_NVF), torch.from_numpy(labels_NC), temperature
    )
    expected = plain_contrast(features_NVF, labels_NC, temperature)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    for anchors in (slice(0, 1), slice(1, n), slice(n, n)):
        part = contrast_of_views(
            torch.from_numpy(features_NVF), torch.from_numpy(labels_NC), temperature, anchors
        )
        np.testing.assert_allclose(part.numpy(), expected[anchors], rtol=1e-9, atol=1e-12)


def test_the_gradient_of_the_contrast_reaches_each_view_and_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    features_NVF = torch.rand(4, 2, 3, generator=generator, dtype=torch.float64)
    features_NVF.requires_grad_()
    labels_NC = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: contrast_of_views(f, labels_NC, 0.5), features_NVF)
    contrast_of_views(features_NVF, labels_NC, 0.5).sum().backward()
    assert features_NVF.grad is not None
    assert (features_NVF.grad.norm(dim=2) > 0).all()


def test_views_that_lie_with_their_like_have_less_contrast_than_views_of_others() -> None:
    labels_NC = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    of_label = torch.eye(2)[[0, 0, 1, 1]]
    apart = contrast_of_views(torch.stack([of_label, of_label.flip(0)], 1), labels_NC, 0.1)
    together = contrast_of_views(torch.stack([of_label, of_label], 1), labels_NC, 0.1)
    # Two of four are alike, and nothing tells them from each other.
    torch.testing.assert_close(together, torch.full((4,), np.log(2)), atol=1e-3, rtol=0)
    assert (apart > together + 5).all()


def test_a_view_without_any_feature_has_a_finite_contrast_and_gradient() -> None:
    features_NVF = torch.zeros(3, 2, 4, requires_grad=True)
    loss_N = contrast_of_views(features_NVF, torch.zeros(3, 2), 0.1)
    loss_N.sum().backward()
    assert features_NVF.grad is not None
    assert loss_N.isfinite().all()
    assert features_NVF.grad.isfinite().all()

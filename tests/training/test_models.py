"""TB-CNN against the published figures, and its parts against their definitions."""

import pytest
import torch
from torch import Tensor, nn

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.nomenclature import GROUPS, STATISTICS
from training.models import build
from training.models.layers import BandNormalize, ByteDropout, ConvBlock
from training.models.tb_cnn import BRANCH_BANDS, TBCNN


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_images(n: int) -> dict[str, Tensor]:
    shapes = {path: GROUPS[path].patch_shape for path in BRANCH_BANDS}
    return {p: torch.randint(0, 9000, (n, *s)).to(torch.uint16) for p, s in shapes.items()}


@pytest.mark.parametrize(("n_classes", "n_parameters"), [(43, 16_526_347), (19, 16_523_251)])
def test_tb_cnn_has_the_published_number_of_trainable_parameters(
    n_classes: int, n_parameters: int
) -> None:
    model = build("tb-cnn", n_classes, "v1")
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == n_parameters


def test_tb_cnn_has_the_published_kernels_and_drop_rates() -> None:
    modules = list(build("tb-cnn", 43, "v1").modules())
    kernels = [m.kernel_size[0] for m in modules if isinstance(m, nn.Conv2d)]
    drops = [m.p for m in modules if isinstance(m, ByteDropout)]
    assert kernels == [5, 5, 3, 3, 3, 3, 2, 2, 2]
    assert drops == [0.25, 0.25, 0.25, 0.5] * 3 + [0.25, 0.5]
    norms = [m for m in modules if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == 13
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


def test_logits_and_features_have_their_shapes_and_features_are_never_negative() -> None:
    model = build("tb-cnn", 19, "v2").eval()
    images = random_images(3)
    features_BF = model.features(images)
    assert features_BF.shape == (3, 128)
    assert features_BF.min() >= 0
    assert model(images).shape == (3, 19)


def test_a_dozen_steps_halve_the_loss_on_eight_patches() -> None:
    model = build("tb-cnn", 4, "v2")
    images, labels_BC = random_images(8), (torch.rand(8, 4) < 0.5).float()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.binary_cross_entropy_with_logits(model(images), labels_BC)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("path", list(BRANCH_BANDS))
def test_each_branch_sees_its_bands_by_name_whatever_their_stored_order(path: str) -> None:
    stored, wanted = GROUPS[path].bands, BRANCH_BANDS[path]
    assert sorted(stored) == sorted(wanted)
    dn_BCYX = random_images(2)[path]
    z_BCYX = BandNormalize(stored, wanted, STATISTICS["v1"])(dn_BCYX)
    for channel, band in enumerate(wanted):
        mean, std = STATISTICS["v1"][band]
        expected = (dn_BCYX[:, stored.index(band)].to(torch.float64) - mean) / std
        torch.testing.assert_close(
            z_BCYX[:, channel].to(torch.float64), expected, rtol=1e-4, atol=1e-5
        )


def test_the_largest_dn_is_not_taken_for_a_negative_one() -> None:
    layer = BandNormalize(("B01",), ("B01",), {"B01": (0.0, 1.0)})
    assert layer(torch.tensor([[[[65535]]]], dtype=torch.uint16)).item() == 65535


def test_a_checkpoint_carries_the_statistics_it_was_trained_with() -> None:
    state = TBCNN(19, STATISTICS["v1"]).state_dict()
    other = TBCNN(19, STATISTICS["v2"])
    other.load_state_dict(state)
    images = random_images(2)
    twin = TBCNN(19, STATISTICS["v1"])
    twin.load_state_dict(state)
    assert torch.equal(other.eval()(images), twin.eval()(images))


def test_an_even_kernel_is_padded_on_the_right_and_at_the_bottom() -> None:
    block = ConvBlock(1, 1, kernel_size=2).eval()
    conv = next(m for m in block.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        conv.weight.fill_(1)
    x_BCYX = torch.arange(9.0).view(1, 1, 3, 3)
    summed = block(x_BCYX) * (1 + 1e-3) ** 0.5  # undo the batch norm of fresh statistics
    torch.testing.assert_close(
        summed[0, 0], torch.tensor([[8.0, 12, 7], [20, 24, 13], [13, 15, 8]])
    )


@pytest.mark.parametrize("p", [0.25, 0.5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_byte_dropout_zeroes_the_asked_share_and_keeps_the_mean(
    p: float, memory_format: torch.memory_format
) -> None:
    x_BCYX = torch.ones(16, 32, 40, 40).contiguous(memory_format=memory_format)
    y_BCYX = ByteDropout(p)(x_BCYX)
    n, kept = y_BCYX.numel(), (y_BCYX != 0).double()
    four_sigma = 4 * (p * (1 - p) / n) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < four_sigma
    assert set(y_BCYX.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    # every byte of a 64-bit draw counts alike: the share holds for each of the eight
    by_lane = kept.permute(0, 2, 3, 1).reshape(-1, 8).mean(0)
    assert (by_lane - (1 - p)).abs().max().item() < four_sigma * 8**0.5 * 1.2


def test_neighboring_elements_are_dropped_independently() -> None:
    kept = (ByteDropout(0.5)(torch.ones(1, 2**20)) != 0).double().flatten() - 0.5
    for lag in (1, 2, 4, 8):
        correlation = (kept[:-lag] * kept[lag:]).mean().item() / 0.25
        assert abs(correlation) < 4 / 2**10


def test_the_gradient_of_byte_dropout_passes_where_the_value_did() -> None:
    x = torch.randn(4, 100, requires_grad=True)
    y = ByteDropout(0.25)(x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(y != 0, 1 / 0.75, 0.0))


def test_byte_dropout_follows_its_generator_and_is_the_identity_in_evaluation() -> None:
    x = torch.randn(5, 77)
    one, two, other = (
        ByteDropout(0.5, torch.Generator().manual_seed(seed))(x) for seed in (3, 3, 4)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert ByteDropout(0.5).eval()(x) is x


@pytest.mark.parametrize("p", [0.3, 1.0, -0.25])
def test_a_drop_rate_that_bytes_cannot_draw_is_refused(p: float) -> None:
    with pytest.raises(InvalidInputError, match="multiple of 1/256"):
        ByteDropout(p)


def test_an_unknown_model_or_band_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="unknown model 'resnet'"):
        build("resnet", 19, "v2")
    with pytest.raises(InvalidInputError, match="'B10' is not stored"):
        BandNormalize(("B01",), ("B10",), STATISTICS["v2"])

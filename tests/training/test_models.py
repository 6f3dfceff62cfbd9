"""The networks against the published figures, and their parts against their definitions."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorchcv.models.bninception import bninception
from pytorchcv.models.resnet import resnet50
from torch import Tensor, nn

from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.nomenclature import GROUPS, S1_GROUP, STATISTICS
from training.models import MODELS, Network, build
from training.models.layers import BandNormalize, ByteDropout, ConvBlock, measuring_batch_norm
from training.models.stacked import RGB, S2_ALL, StackedBands
from training.models.tb_cnn import BRANCH_BANDS, S2, TBCNN


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_images(n: int) -> dict[str, Tensor]:
    shapes = {path: GROUPS[path].patch_shape for path in S2}
    images = {p: torch.randint(0, 9000, (n, *s)).to(torch.uint16) for p, s in shapes.items()}
    return images | {S1_GROUP.path: torch.randn(n, *S1_GROUP.patch_shape) * 5 - 15}


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
    assert dn_BCYX.dtype == getattr(torch, GROUPS[path].dtype)
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


QUICK = ("tb-cnn-mm", "s-cnn-rgb", "s-cnn-all", "resnet50-s1-s2", "vgg16-s1")


def check_shapes(name: str) -> None:
    model = build(name, 5, "v2").eval()
    images = random_images(2)
    with torch.inference_mode():
        features_BF = model.features({path: images[path] for path in model.groups})
        assert features_BF.shape == (2, model.n_features)
        assert features_BF.min() >= 0  # so that chi-square distances are defined
        assert model(images).shape == (2, 5)


@pytest.mark.parametrize("name", QUICK)
def test_a_network_gives_features_that_are_never_negative_and_a_logit_a_class(name: str) -> None:
    check_shapes(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MODELS) - set(QUICK) - {"tb-cnn"}))
def test_so_does_every_other_network(name: str) -> None:
    check_shapes(name)


def test_the_fourth_branch_is_built_like_the_one_of_the_other_bands_at_10_m() -> None:
    mm, three = build("tb-cnn-mm", 19, "v2"), build("tb-cnn", 19, "v2")
    kernels = [m.kernel_size[0] for m in mm.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [5, 5, 3, 3, 3, 3, 2, 2, 2, 5, 5, 3]
    assert mm.groups == (*three.groups, "s1/r10m")
    # Two bands fewer into 32 kernels of 5 x 5, and 128 features more into the fusion.
    branch = sum(p.numel() for p in three.branches[0].parameters()) - 2 * 32 * 25
    n_three = sum(p.numel() for p in three.parameters())
    assert sum(p.numel() for p in mm.parameters()) == n_three + branch + 128 * 128


def cubic(x_N: np.ndarray, factor: int) -> np.ndarray:
    """Keys' cubic convolution with a = -.75 along the last axis, edges repeated, centers aligned."""
    a, n = -0.75, x_N.shape[-1]

    def weight(t: np.ndarray) -> np.ndarray:
        t = abs(t)
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        return np.where(t <= 1, near, np.where(t < 2, a * (t**3 - 5 * t**2 + 8 * t - 4), 0))

    at = (np.arange(n * factor) + 0.5) / factor - 0.5
    first = np.floor(at).astype(int)
    taken = (first + k for k in (-1, 0, 1, 2))
    return sum(x_N[..., np.clip(i, 0, n - 1)] * weight(at - i) for i in taken)


def test_bands_are_stacked_by_name_and_coarse_ones_upsampled_by_cubic_convolution() -> None:
    stack = StackedBands(S2_ALL, STATISTICS["v2"])
    images = random_images(2)
    stacked_BCYX = stack(images).numpy()
    assert stacked_BCYX.shape == (2, 12, 120, 120)
    wanted = [band for bands in S2_ALL.values() for band in bands]
    for channel, band in enumerate(wanted):
        path = next(path for path, bands in S2_ALL.items() if band in bands)
        dn_BYX = images[path][:, GROUPS[path].bands.index(band)].numpy().astype(np.float64)
        factor = 120 // dn_BYX.shape[-1]
        if factor > 1:
            dn_BYX = cubic(cubic(dn_BYX, factor).swapaxes(1, 2), factor).swapaxes(1, 2)
        mean, std = STATISTICS["v2"][band]
        np.testing.assert_allclose(
            stacked_BCYX[:, channel], (dn_BYX - mean) / std, rtol=1e-3, atol=1e-3
        )


def test_rgb_is_red_green_blue_and_may_be_scaled() -> None:
    assert RGB == {"s2/r10m": ("B04", "B03", "B02")}
    stack = StackedBands(RGB, STATISTICS["v2"], 224)
    assert stack(random_images(2)).shape == (2, 3, 224, 224)


def pretrained(folder: Path, name: str, net: nn.Module) -> str:
    path = folder / f"{name}.pth"
    torch.save(net.state_dict(), path)
    return str(path)


def test_a_backbone_begins_with_the_weights_of_a_file_and_a_head_of_its_own(tmp_path: Path) -> None:
    published = bninception()
    model = build("inception-v2", 7, "v2").eval()
    model.load_weights(pretrained(tmp_path, "bninception", published))
    images = random_images(2)
    with torch.inference_mode():
        found = model.features(images)
        expected = published.eval().features(model.bands(images)).flatten(1)
    torch.testing.assert_close(found, expected)
    assert model.head.out_features == 7


def test_kernels_of_photographs_answer_equal_bands_as_they_answered_three(tmp_path: Path) -> None:
    published = resnet50()
    model = build("resnet50-s1-s2", 7, "v2")
    model.load_weights(pretrained(tmp_path, "resnet50", published))
    flat_BCYX = torch.randn(1, 1, 32, 32)
    first, theirs = (
        net[0].conv.conv if hasattr(net[0], "conv") else net
        for net in (model.trunk[0], published.features)
    )
    torch.testing.assert_close(
        first(flat_BCYX.expand(1, 12, 32, 32)), theirs(flat_BCYX.expand(1, 3, 32, 32))
    )


def test_weights_that_are_missing_or_of_something_else_are_named(tmp_path: Path) -> None:
    model = build("resnet50-s2", 7, "v2")
    with pytest.raises(NotFoundError, match=rf"weights missing: {tmp_path}/none\.pth"):
        model.load_weights(str(tmp_path / "none.pth"))
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(
        InvalidInputError, match=r"has no features\..*; expected weights of resnet50"
    ):
        model.load_weights(str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(InvalidInputError, match="holds no weights"):
        model.load_weights(str(tmp_path / "text.pth"))
    with pytest.raises(InvalidInputError, match="no published weights of a TBCNN"):
        build("tb-cnn", 7, "v2").load_weights("imagenet")


def test_a_frozen_network_trains_its_head_alone() -> None:
    model: Network = build("s-cnn-rgb", 4, "v2")
    model.freeze()
    model.train()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
    loss = nn.functional.binary_cross_entropy_with_logits(model(random_images(4)), torch.ones(4, 4))
    loss.backward()
    optimizer.step()
    changed = {name for name, v in model.state_dict().items() if not torch.equal(v, before[name])}
    assert changed == {"head.1.weight", "head.1.bias"}


def test_measuring_batch_norm_leaves_each_networks_own_momentum() -> None:
    model = build("resnet50-s1", 4, "v2")
    with measuring_batch_norm(model):
        pass
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_model_of_timm_is_refused_in_words_where_timm_cannot_be_imported() -> None:
    with pytest.raises(InvalidInputError, match=r"needs timm, and a torchvision of the same build"):
        build("timm:convnextv2_base-s1-s2", 19, "v2")


def test_an_unknown_model_or_band_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="unknown model 'resnet'"):
        build("resnet", 19, "v2")
    with pytest.raises(InvalidInputError, match="'B10' is not stored"):
        BandNormalize(("B01",), ("B10",), STATISTICS["v2"])

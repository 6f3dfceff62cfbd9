"""Configs and recipes: whole, frozen, and refused where they make no sense."""

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigearth_cube.errors import InvalidInputError
from training.config import Config
from training.models import MODELS
from training.recipes import RECIPES, recipe


def test_tb_cnn_has_the_published_settings() -> None:
    config = recipe("tb-cnn", "label_43")
    assert (config.batch_size, config.epochs, config.learning_rate, config.seed) == (
        1000,
        100,
        1e-3,
        42,
    )
    assert config.schedule == "constant"
    assert not config.augment
    assert not config.prior_bias
    assert not config.batch_norm_patches
    assert not config.tune_threshold
    assert not config.weight_decay


def test_tb_cnn_small_fits_a_small_machine() -> None:
    assert recipe("tb-cnn-small", "label_19").batch_size <= 64


def test_the_rows_of_the_2019_table_have_the_papers_settings() -> None:
    for name in ("s-cnn-rgb", "s-cnn-all", "inception-v2"):
        config = recipe(name, "label_43")
        assert (config.model, config.epochs, config.learning_rate) == (name, 100, 1e-3)
        assert not config.augment
        assert (config.frozen, config.weights) == (
            (True, "imagenet") if name == "inception-v2" else (False, None)
        )


def test_the_contrastive_recipe_is_that_of_tb_cnn_but_for_its_model_and_the_contrast() -> None:
    config = recipe("tb-cnn-contrastive", "label_43")
    assert (config.contrast, config.temperature) == (1.0, 0.1)
    assert config.differences(recipe("tb-cnn", "label_43")) == [
        "recipe 'tb-cnn-contrastive' / 'tb-cnn'",
        "model 'tb-cnn-contrastive' / 'tb-cnn'",
        "contrast 1.0 / 0.0",
    ]
    small = recipe("tb-cnn-contrastive-small", "label_43")
    assert (small.contrast, small.temperature) == (1.0, 0.1)
    assert not recipe("tb-cnn-small", "label_43").contrast


def test_reben_has_the_published_settings() -> None:
    config = recipe("reben-resnet50-s1-s2", "label_19")
    assert (config.batch_size, config.learning_rate, config.weight_decay) == (512, 1e-3, 0.01)
    assert config.schedule == "cosine"
    assert (config.warmup_steps, config.monitor, config.epochs) == (1000, "ap_macro", 100)
    assert config.patience is not None
    assert recipe("timm:rdnet_base-s2", "label_19").weight_decay == 0.01


def test_bigearthnet_mm_is_plain_adam_on_every_backbone_and_input() -> None:
    for backbone in ("resnet50", "resnet101", "resnet152", "vgg16", "vgg19"):
        for inputs in ("s1", "s2", "s1-s2"):
            config = recipe(f"{backbone}-{inputs}", "label_43")
            assert (config.learning_rate, config.weight_decay, config.weights) == (1e-3, 0, None)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_names_a_network_and_has_a_form_for_small_machines(name: str) -> None:
    config = recipe(name, "label_19")
    assert config.model in MODELS
    small = recipe(name if name.endswith("-small") else f"{name}-small", "label_19")
    assert (small.model, small.batch_size) == (config.model, 64)


def test_a_frozen_network_whose_batch_norm_is_to_be_measured_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="batch_norm_patches 0, found 8"):
        recipe("inception-v2", "label_19", batch_norm_patches=8)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_config_survives_its_json_and_cannot_be_changed(name: str) -> None:
    config = recipe(name, "label_19")
    assert config.recipe == name
    assert Config.from_json(config.to_json()) == config
    with pytest.raises(FrozenInstanceError):
        config.epochs = 3  # type: ignore[misc]


@given(st.integers(1, 500), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_the_learning_rate_is_never_zero_and_never_above_its_peak(n: int, warmup: float) -> None:
    config = recipe("tb-cnn-small", "label_19", warmup=warmup)
    rates = [config.learning_rate_at(step, n) for step in range(n)]
    assert all(0 < rate <= config.learning_rate for rate in rates)
    n_warm = round(warmup * n)
    assert rates[:n_warm] == sorted(rates[:n_warm])
    assert rates[n_warm:] == sorted(rates[n_warm:], reverse=True)


def test_warm_up_may_be_a_number_of_steps() -> None:
    config = recipe("tb-cnn-small", "label_19", warmup_steps=4, learning_rate=1.0)
    rates = [config.learning_rate_at(step, 10) for step in range(10)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.98], abs=0.01)
    short = [config.learning_rate_at(step, 3) for step in range(3)]  # a run that never gets warm
    assert short == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("field", ["batch_size", "epochs"])
def test_a_run_of_zero_steps_is_refused(field: str) -> None:
    with pytest.raises(InvalidInputError, match="zero steps"):
        recipe("tb-cnn-small", "label_19", **{field: 0})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("batch_norm_patches", -1),
        ("warmup", 1.5),
        ("schedule", "step"),
        ("precision", "float16"),
        ("labels", "label_20"),
        ("seed", -1),
        ("warmup_steps", -1),
        ("clip_norm", 0.0),
        ("loss", "hinge"),
        ("loss_q", 1.5),
        ("class_balance", 1.0),
        ("contrast", -0.5),
        ("contrast", float("inf")),
        ("temperature", 0.0),
        ("ema", 1.0),
        ("monitor", "loss"),
        ("patience", 0),
        ("shuffle", "none"),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: object) -> None:
    values = {"labels": "label_19", field: value}
    with pytest.raises(InvalidInputError, match=str(value)):
        recipe("tb-cnn", **values)  # type: ignore[arg-type]


def test_an_unknown_recipe_or_field_is_named() -> None:
    with pytest.raises(InvalidInputError, match="'resnet18'; choose one of: tb-cnn"):
        recipe("resnet18", "label_19")
    with pytest.raises(InvalidInputError, match="field 'colour' is unknown"):
        Config.from_json(recipe("tb-cnn", "label_19").to_json().replace('"seed"', '"colour"'))
    with pytest.raises(InvalidInputError, match="field 'batch_size' is missing"):
        Config.from_json('{"recipe": "tb-cnn", "model": "tb-cnn", "labels": "label_19"}')


def test_a_config_written_before_a_field_was_there_reads_as_what_was_done_then() -> None:
    old = {
        "recipe": "tb-cnn",
        "model": "tb-cnn",
        "labels": "label_19",
        "batch_size": 1000,
        "epochs": 100,
        "learning_rate": 1e-3,
    }
    assert Config.from_json(json.dumps(old)) == recipe("tb-cnn", "label_19")


def test_differences_name_the_field_and_both_values() -> None:
    one, other = recipe("tb-cnn", "label_19"), recipe("tb-cnn", "label_19", epochs=7)
    assert one.differences(other) == ["epochs 100 / 7"]
    assert not one.differences(one)

"""Training of fusion models: it learns, keeps the best epoch, and comes to the same bits again."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.config.fusion import EncoderSettings, FusionKind, FusionSettings, InputSizes, Modality
from pipeline.models.fusion import PRESENT, FusionModel
from pipeline.models.fusion.training import Labelled, fit, predict, step_size


def rows(num: int, seed: int) -> Labelled:
    """The class is whether both numbers have the same sign: a linear model of them knows nothing."""
    numbers = torch.randn(num, 2, generator=torch.Generator().manual_seed(seed))
    inputs = {"numbers": numbers, PRESENT: torch.ones(num, 1, dtype=torch.bool)}
    return Labelled(inputs, (numbers.prod(1) > 0).long())


def model_of(*, freeze: bool = False) -> FusionModel:
    torch.manual_seed(0)
    settings = FusionSettings(
        kind=FusionKind.AVERAGE,
        modalities=(Modality.NUMBERS,),
        hidden_size=16,
        sizes=InputSizes(num_numbers=2),
        encoders={Modality.NUMBERS: EncoderSettings(width=16, freeze=freeze)},
    )
    return FusionModel(settings, 2)


def trained(model: FusionModel, *, epochs: int = 8) -> list[float]:
    settings = {"epochs": epochs, "batch_size": 32, "learning_rate": 1e-2, "weight_decay": 0.01, "seed": 0}
    history = fit(model, rows(512, 1), rows(128, 2), **settings)  # pyright: ignore[reportArgumentType]
    return [epoch.validation_accuracy for epoch in history]


@pytest.mark.parametrize("freeze", [False, True])
def test_it_learns_what_is_not_linear_with_encoders_learning_or_frozen(freeze: bool) -> None:
    model = model_of(freeze=freeze)
    trained(model)
    test = rows(256, 3)

    accuracy = (predict(model, test.inputs).logits.argmax(-1) == test.labels).float().mean()

    assert accuracy > 0.9


def test_the_best_epoch_on_validation_is_kept() -> None:
    model = model_of()
    history = trained(model, epochs=3)
    validation = rows(128, 2)

    kept = (predict(model, validation.inputs).logits.argmax(-1) == validation.labels).float().mean()

    assert float(kept) == max(history)


def test_the_same_seeds_come_to_the_same_bits() -> None:
    one, other = model_of(), model_of()

    assert trained(one, epochs=2) == trained(other, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_label_of_another_number_of_classes_stops_before_training() -> None:
    wrong = Labelled(rows(4, 0).inputs, torch.tensor([0, 1, 2, 0]))

    with pytest.raises(ValueError, match="row 2 has label 2, and the model has 2 classes"):
        fit(model_of(), wrong, wrong, epochs=1, batch_size=2, learning_rate=1e-3, weight_decay=0.0, seed=0)


def test_the_step_size_rises_over_a_tenth_and_falls_as_half_a_cosine() -> None:
    sizes = [step_size(step, 20) for step in range(21)]

    assert sizes[:3] == [0.5, 1.0, 1.0]
    assert sizes[11] == pytest.approx(0.5)
    assert sizes[20] == pytest.approx(0.0)
    assert sizes[5] == pytest.approx(0.5 * (1 + math.cos(math.pi * 3 / 18)))

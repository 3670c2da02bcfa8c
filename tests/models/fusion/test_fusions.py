"""Every kind of fusion: what is missing changes nothing, and weights say what they claim."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.config.fusion import EncoderKind, EncoderSettings, FusionKind, FusionSettings, InputSizes, Modality
from pipeline.models.fusion import PRESENT, FusionModel, Inputs
from pipeline.models.fusion.attention import Attention, masked_mean, masked_softmax
from pipeline.models.fusion.fusions import Concat, CrossAttention, Graph, Tokens, Weighted, shares
from pipeline.models.fusion.model import dropped

SIZES = InputSizes(image_side=8, text_length=6, num_numbers=2)
MODALITIES = (Modality.TEXT, Modality.IMAGE, Modality.NUMBERS)
KINDS = tuple(FusionKind)


def settings_of(kind: FusionKind, modalities: tuple[Modality, ...] = MODALITIES) -> FusionSettings:
    vit = EncoderSettings(kind=EncoderKind.VIT, width=8, num_heads=2, num_layers=1)
    return FusionSettings(
        kind=kind,
        modalities=modalities,
        hidden_size=8,
        num_heads=2,
        num_layers=2,
        num_segments=2,
        sizes=SIZES,
        encoders={
            Modality.TEXT: EncoderSettings(width=8, num_heads=2, num_layers=1),
            Modality.IMAGE: vit,
            Modality.NUMBERS: EncoderSettings(width=8, num_heads=2),
        },
    )


def model_of(kind: FusionKind, modalities: tuple[Modality, ...] = MODALITIES) -> FusionModel:
    torch.manual_seed(0)
    model = FusionModel(settings_of(kind, modalities), num_classes=3).eval()
    # Large enough that nothing agrees by being small.
    for name, parameter in model.named_parameters():
        if name.startswith(("fusion", "head", "projections")):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def batch() -> Inputs:
    """Three rows: one that has all, one without a text, one with numbers alone."""
    torch.manual_seed(1)
    return {
        "text": torch.randint(1, 257, (3, 6)),
        "image": torch.rand(3, 3, 8, 8) * 2 - 1,
        "numbers": torch.randn(3, 2),
        PRESENT: torch.tensor([[True, True, True], [False, True, True], [False, False, True]]),
    }


def others_in_the_place_of_what_is_missing(inputs: Inputs) -> Inputs:
    changed = {name: each.clone() for name, each in inputs.items()}
    changed["text"][1:] = 99
    changed["image"][2] = math.nan
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_in_the_place_of_a_missing_modality_changes_no_bit(kind: FusionKind) -> None:
    model, inputs = model_of(kind), batch()

    plain, changed = model(inputs), model(others_in_the_place_of_what_is_missing(inputs))

    for one, other in ((plain.logits, changed.logits), (plain.embedding, changed.embedding)):
        assert torch.equal(one, other)
    assert torch.equal(plain.weights, changed.weights)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_do_features_that_lie_there_nor_do_they_spoil_gradients(kind: FusionKind) -> None:
    model, inputs = model_of(kind), batch()
    features = model.features(inputs)
    changed = {name: each.clone() for name, each in features.items()}
    changed["text_features"][1:] = math.nan
    changed["text_mask"][1:] = True

    plain, other = model(features), model(changed)
    other.logits.sum().backward()

    assert torch.equal(plain.logits, other.logits)
    assert torch.equal(plain.logits, model(inputs).logits)
    assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not FusionKind.CONCAT])
@pytest.mark.parametrize(("row", "present"), [(1, MODALITIES[1:]), (2, MODALITIES[2:])])
def test_a_row_without_a_modality_is_that_of_a_model_that_does_not_know_it(
    kind: FusionKind, row: int, present: tuple[Modality, ...]
) -> None:
    model, inputs = model_of(kind), batch()
    smaller = FusionModel(settings_of(kind, present), num_classes=3).eval()
    smaller.load_state_dict({name: model.state_dict()[name] for name in smaller.state_dict()})

    whole = model(inputs)
    known = {each.value: inputs[each.value][row : row + 1] for each in present}
    alone = smaller({**known, PRESENT: torch.ones(1, len(present), dtype=torch.bool)})

    torch.testing.assert_close(whole.logits[row], alone.logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.embedding[row], alone.embedding[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.weights[row, -len(present) :], alone.weights[0], atol=1e-5, rtol=1e-5)


def test_concat_puts_the_learned_token_in_the_place_of_what_is_missing() -> None:
    model, inputs = model_of(FusionKind.CONCAT), batch()
    fusion = model.fusion
    assert isinstance(fusion, Concat)
    features = model.features(inputs)
    row = 1
    tokens = {each: model.projections[each.value](features[each + "_features"]) for each in MODALITIES}
    image, numbers = (fusion.summaries[each.value](tokens[each][row].mean(0)) for each in MODALITIES[1:])

    side_by_side = torch.cat([fusion.absent["text"], image, numbers])
    layer = torch.cat([fusion.layers[each.value].weight for each in MODALITIES], 1)  # pyright: ignore[reportArgumentType]
    bias = torch.stack([fusion.layers[each.value].bias for each in MODALITIES]).sum(0)  # pyright: ignore[reportArgumentType]
    expected = model.head(model.normal(layer @ side_by_side + bias))

    torch.testing.assert_close(model(inputs).logits[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_sum_to_one_over_what_is_there(kind: FusionKind) -> None:
    weights = model_of(kind)(batch()).weights

    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert (weights >= 0).all()
    assert weights[1, 0] == weights[2, 0] == weights[2, 1] == 0
    assert weights[2, 2] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_may_lack_the_tensor_of_what_no_row_has(kind: FusionKind) -> None:
    model, inputs = model_of(kind), batch()
    inputs[PRESENT][:, 0] = False
    lacking = {name: each for name, each in inputs.items() if name != "text"}

    assert torch.equal(model(inputs).logits, model(lacking).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_all_modalities_that_are_there_count(kind: FusionKind) -> None:
    model, inputs = model_of(kind), batch()
    plain = model(inputs).logits

    for name in ("text", "image", "numbers"):
        changed = {key: each.clone() for key, each in inputs.items()}
        changed[name][0] = changed[name][0].flip(0)
        assert (model(changed).logits[0] - plain[0]).abs().max() > 1e-4, name


def given(vectors: list[list[float]], present: list[bool]) -> Tokens:
    """One row, one token a modality."""
    here = torch.tensor(present)[None]
    modalities = MODALITIES[: len(vectors)]
    tokens = {each: torch.tensor(vector)[None, None] for each, vector in zip(modalities, vectors, strict=True)}
    return Tokens(tokens, {each: here[:, m, None] for m, each in enumerate(modalities)}, here)


def test_learned_weights_are_a_softmax_over_what_is_there() -> None:
    fusion = Weighted(settings_of(FusionKind.WEIGHTED))
    for name, score in (("text", 0.0), ("image", math.log(2)), ("numbers", math.log(3))):
        torch.nn.init.constant_(fusion.scores[name], score)
        fusion.summaries[name] = torch.nn.Identity()
    one, two, three = [1.0] * 8, [2.0] * 8, [6.0] * 8

    embedding, weights = fusion(given([one, two, three], [True, True, True]))
    _, without = fusion(given([one, two, three], [True, False, True]))

    torch.testing.assert_close(weights[0], torch.tensor([1 / 6, 2 / 6, 3 / 6]))
    torch.testing.assert_close(embedding[0], torch.full((8,), (1 + 2 * 2 + 3 * 6) / 6))
    torch.testing.assert_close(without[0], torch.tensor([1 / 4, 0, 3 / 4]))


def test_shares_are_those_of_what_is_there_and_equal_where_all_is_nothing() -> None:
    present = torch.tensor([[True, True, False], [True, False, True]])
    amounts = torch.tensor([[3.0, 1.0, 7.0], [0.0, 5.0, 0.0]])

    expected = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.0, 0.5]])
    torch.testing.assert_close(shares(amounts, present), expected)


def test_a_token_alone_hears_nothing_of_others() -> None:
    torch.manual_seed(0)
    fusion = CrossAttention(settings_of(FusionKind.CROSS_ATTENTION))
    heard: list[Tensor] = []
    fusion.blocks[0].attention.register_forward_hook(lambda _, __, output: heard.append(output[0]))  # pyright: ignore

    fusion(given([[1.0] * 8, [2.0] * 8], [True, False]))
    fusion(given([[1.0] * 8, [2.0] * 8], [True, True]))

    assert (heard[0][:, 0] == 0).all()
    assert (heard[1] != 0).any(-1).all()


def test_attention_is_what_pytorch_computes() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(8, 2), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    tokens, allowed = torch.randn(2, 5, 8), torch.rand(2, 5, 5) < 0.6
    allowed |= torch.eye(5, dtype=torch.bool)

    heard, probabilities = ours(tokens, tokens, allowed)
    expected, weights = theirs(tokens, tokens, tokens, attn_mask=~allowed.repeat_interleave(2, 0))

    torch.testing.assert_close(heard, expected)
    torch.testing.assert_close(probabilities, weights)


def test_a_softmax_and_a_mean_over_nothing_are_zero_and_have_finite_gradients() -> None:
    scores = torch.tensor([[1.0, 2.0]], requires_grad=True)
    nothing = torch.tensor([[False, False]])

    found = masked_softmax(scores, nothing).sum() + masked_mean(scores[..., None], nothing).sum()
    found.backward()

    assert found == 0
    assert scores.grad is not None and (scores.grad == 0).all()


def test_nodes_of_the_graph_hear_their_neighbours_alone() -> None:
    fusion = Graph(settings_of(FusionKind.GRAPH, MODALITIES[:2]))  # hubs 0 and 1, segments 2, 3 and 4, 5

    edges = fusion._edges(torch.device("cpu"))  # pyright: ignore[reportPrivateUsage]

    heard = {node: edges[node].nonzero()[:, 0].tolist() for node in range(6)}
    assert heard == {0: [1, 2, 3], 1: [0, 4, 5], 2: [0, 3], 3: [0, 2], 4: [1, 5], 5: [1, 4]}


def test_segments_of_the_graph_are_those_of_what_is_there() -> None:
    fusion = Graph(settings_of(FusionKind.GRAPH, MODALITIES[:1]))
    torch.nn.init.zeros_(fusion.kinds["text"])
    tokens = torch.arange(6.0)[None, :, None].expand(1, 6, 8)
    mask = torch.tensor([[True] * 4 + [False] * 2])

    here = Tokens({Modality.TEXT: tokens}, {Modality.TEXT: mask}, torch.tensor([[True]]))
    segments, there = fusion._segments(here)  # pyright: ignore[reportPrivateUsage]

    assert segments[0, :, 0].tolist() == [0.5, 2.5]
    assert there.tolist() == [[True, True]]


def test_modality_dropout_takes_never_the_last_one() -> None:
    torch.manual_seed(0)
    present = torch.tensor([[True, False, True]]).expand(1000, 3)

    kept = dropped(present, 0.9)

    assert kept.any(1).all()
    assert not kept[:, 1].any()
    assert 0.4 < kept[:, 0].float().mean() < 0.95  # 0.1 of them, and those where both would have gone
    assert torch.equal(dropped(present, 0.0), present)

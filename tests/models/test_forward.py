"""The shared-prefix passes against the stock model on raw media, and what batching and padding must not change."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import Dtype, MediaLimits
from pipeline.data.media import decode, resample
from pipeline.data.table import PromptTable
from pipeline.models.batch import CompletionBatch, PromptBatch, collate_completions, collate_prompts
from pipeline.models.checkpoint import load_policy, load_reward_model, load_value_model
from pipeline.models.forward import Policy, RewardModel, ValueModel
from pipeline.models.processing import PromptProcessor
from pipeline.models.vocabulary import VocabularyHead
from pipeline.records import Audio, EncodedPrompt, Image, MediaKind, Message, ProcessedPrompt, Prompt, Video

LIMITS = MediaLimits()
GROUP_SIZE = 2
PAD_ID = 0
UNUSED = {"model.audio_tower.audio_bos_eos_token.weight"}
"""The stock audio tower owns it and never calls it: it has no gradient on any rank."""


@dataclass(frozen=True)
class Bed:
    """A tiny checkpoint, and a batch of prompts and completions in which all its modalities are mixed."""

    path: Path
    policy: Policy
    processor: PromptProcessor
    prompts: list[Prompt]
    processed: list[ProcessedPrompt]
    completions: list[list[NDArray[np.int64]]]

    @property
    def batch(self) -> tuple[PromptBatch, CompletionBatch]:
        return collate_prompts(self.processed, pad_id=PAD_ID), collate_completions(self.completions, pad_id=PAD_ID)

    def kinds(self, row: int) -> set[MediaKind]:
        return {medium.kind for medium in self.prompts[row].media}


@pytest.fixture(scope="module", params=["tiny_checkpoint", "tiny_vl_checkpoint"], ids=["omni", "vl"])
def bed(request: pytest.FixtureRequest, demo_data: Path) -> Bed:
    return _bed(request.getfixturevalue(request.param), demo_data)


@pytest.fixture(scope="module")
def omni(tiny_checkpoint: Path, demo_data: Path) -> Bed:
    return _bed(tiny_checkpoint, demo_data)


def _bed(path: Path, demo_data: Path) -> Bed:
    policy = load_policy(path, dtype=Dtype.FLOAT32, trust_remote_code=False)
    _sharpen(policy)
    processor = PromptProcessor(
        path=path, model=policy.decoder.model, limits=LIMITS, max_prompt_tokens=512, trust_remote_code=False
    )
    taken = set(policy.decoder.architecture.modalities)
    prompts = [prompt for prompt in _prompts(demo_data) if {medium.kind for medium in prompt.media} <= taken]
    # The stock forward, which finds media by their special tokens, must find none in a completion.
    special = list(processor.processor.tokenizer.added_tokens_decoder)
    words = np.setdiff1d(np.arange(policy.decoder.model.config.get_text_config().vocab_size), special)
    rng = np.random.default_rng(0)
    completions = [[rng.choice(words, rng.integers(1, 7)) for _ in range(GROUP_SIZE)] for _ in prompts]
    return Bed(path, policy, processor, prompts, [processor(prompt) for prompt in prompts], completions)


def _sharpen(module: nn.Module) -> None:
    """Larger weights, so that attention is uneven and wrong positions or media would show."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)


def _prompts(demo_data: Path) -> list[Prompt]:
    """One prompt of each task, and two in which several media are mixed."""
    table = PromptTable(demo_data / "train.parquet")
    found: dict[str, Prompt] = {}
    for prompt in table.read([info.id for info in table.infos()]):
        assert isinstance(prompt, Prompt)
        found.setdefault(prompt.task, prompt)
    picture, clip = found["scene"].media[0], found["video"].media[0]
    sound = found["speech"].media[0]
    three = _ask("First <image> then <audio> and <video>, what?", picture, sound, clip)
    visions = _ask("<video>Or<image><image>?", clip, picture, found["digit"].media[0])
    return [*found.values(), three, visions]


def _ask(content: str, *media: Any) -> Prompt:
    return Prompt(id=content, task="mixed", messages=(Message("user", content),), media=media, answer="none")


def _stock_inputs(bed: Bed) -> dict[str, Tensor]:
    """All completions behind their prompts, in one padded batch by the stock processor."""
    repeated = [prompt for prompt in bed.prompts for _ in range(GROUP_SIZE)]
    decoded = [decode(medium, LIMITS) for prompt in repeated for medium in prompt.media]
    processor = bed.processor.processor
    arguments: dict[str, Any] = {"images": [item.pixels for item in decoded if isinstance(item, Image)]}
    clips = [item for item in decoded if isinstance(item, Video)]
    sounds = [resample(item, 16_000).samples for item in decoded if isinstance(item, Audio)]
    videos: dict[str, Any] = {"size": dict(processor.video_processor.size), "do_sample_frames": False}
    if sounds:
        arguments["audio"] = sounds
        videos["fps"] = clips[0].frames_per_second
    else:
        videos["video_metadata"] = [{"fps": clip.frames_per_second, "total_num_frames": None} for clip in clips]
    inputs = processor(
        text=[bed.processor.template(prompt) for prompt in repeated],
        videos=[clip.frames for clip in clips],
        videos_kwargs=videos,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        **arguments,
    )
    _, completions = bed.batch
    inputs["input_ids"] = torch.cat([inputs["input_ids"], completions.token_ids], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], completions.mask.long()], dim=1)
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(completions.token_ids)], dim=1)
    return dict(inputs)


def _stock_logprobs(bed: Bed, model: Any) -> Tensor:
    """Logprobs [N, T] by the stock model's own forward, zero where padded."""
    _, completions = bed.batch
    length = completions.token_ids.shape[1]
    logits = model(**_stock_inputs(bed)).logits[:, -length - 1 : -1].clone()
    logits[..., list(bed.policy.decoder.placeholders.values())] = -math.inf
    logprobs = logits.log_softmax(-1).gather(-1, completions.token_ids[..., None])[..., 0]
    return logprobs.masked_fill(~completions.mask, 0.0)


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}


def test_logprobs_equal_the_stock_models_own_forward_on_raw_media(bed: Bed) -> None:
    with torch.no_grad():
        logprobs, _ = bed.policy(*bed.batch)
        expected = _stock_logprobs(bed, bed.policy.decoder.model)
    assert (logprobs - expected).abs().max() < 1e-4


def test_every_medium_and_every_position_counts(bed: Bed) -> None:
    """The tests of equality would see a mistake: blank media and plain positions change the logprobs."""
    prompts, completions = bed.batch
    blank = collate_prompts(
        [bed.processor(prompt, blanked=frozenset(MediaKind)) for prompt in bed.prompts], pad_id=PAD_ID
    )
    plain = replace(prompts, position_ids=(prompts.mask.long().cumsum(1) - 1).clamp(min=0).expand(3, -1, -1))
    with torch.no_grad():
        logprobs, _ = bed.policy(prompts, completions)
        change_of_media = (bed.policy(blank, completions)[0] - logprobs).abs().amax(1).view(-1, GROUP_SIZE).amax(1)
        change_of_place = (bed.policy(plain, completions)[0] - logprobs).abs().amax(1).view(-1, GROUP_SIZE).amax(1)
    for row in range(len(bed.prompts)):
        kinds = bed.kinds(row)
        assert (change_of_media[row] > 1e-2) == bool(kinds)
        assert (change_of_place[row] > 1e-2) == bool(kinds - {MediaKind.AUDIO})


def test_gradients_through_the_shared_prefix_equal_those_of_the_plain_forward(bed: Bed) -> None:
    prompts, completions = bed.batch
    weights = torch.randn(completions.mask.shape, generator=torch.Generator().manual_seed(1))
    model = bed.policy.decoder.model
    model.zero_grad()
    (bed.policy(prompts, completions)[0] * weights).sum().backward()
    shared = _gradients(model)
    model.zero_grad()
    (_stock_logprobs(bed, model) * weights).sum().backward()
    plain = _gradients(model)
    model.zero_grad()
    assert shared.keys() == plain.keys() == dict(model.named_parameters()).keys() - UNUSED
    typical = torch.stack([gradient.norm() for gradient in plain.values()]).median()
    for name, gradient in plain.items():
        # Biases of keys have no effect, so that their gradients are rounding: judged against the typical size.
        assert (shared[name] - gradient).norm() <= 1e-4 * max(gradient.norm(), 1e-3 * typical), name


def test_without_a_shared_prefix_outputs_and_gradients_are_the_same(bed: Bed) -> None:
    prompts, completions = bed.batch
    weights = torch.randn(completions.mask.shape, generator=torch.Generator().manual_seed(1))
    model, found = bed.policy.decoder.model, []
    for share_prefix in (True, False):
        bed.policy.decoder.share_prefix = share_prefix
        model.zero_grad()
        logprobs = bed.policy(prompts, completions)[0]
        (logprobs * weights).sum().backward()
        found.append((logprobs.detach(), _gradients(model)))
    bed.policy.decoder.share_prefix = True
    model.zero_grad()
    (shared, shared_gradients), (whole, whole_gradients) = found
    assert (shared - whole).abs().max() < 1e-4
    assert shared_gradients.keys() == whole_gradients.keys()
    typical = torch.stack([gradient.norm() for gradient in whole_gradients.values()]).median()
    for name, gradient in whole_gradients.items():
        assert (shared_gradients[name] - gradient).norm() <= 1e-4 * max(gradient.norm(), 1e-3 * typical), name


def _models(bed: Bed) -> dict[str, nn.Module]:
    torch.manual_seed(2)
    scored: list[RewardModel | ValueModel] = [
        load_reward_model(bed.path, dtype=Dtype.FLOAT32, trust_remote_code=False),
        load_value_model(bed.path, dtype=Dtype.FLOAT32, trust_remote_code=False),
    ]
    for module in scored:
        _sharpen(module)
    return {"policy": bed.policy, "reward": scored[0], "critic": scored[1]}


@torch.no_grad()
def _outputs(module: nn.Module, prompts: PromptBatch, completions: CompletionBatch) -> list[Tensor]:
    found = module(prompts, completions)
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("role", ["policy", "reward", "critic"])
def test_a_batch_equals_its_groups_one_by_one(bed: Bed, role: str) -> None:
    module = _models(bed)[role]
    for whole in _outputs(module, *bed.batch):
        assert whole.std() > 1e-2  # else equality would say little
    parts = [
        _outputs(module, collate_prompts([prompt], pad_id=PAD_ID), collate_completions([completions], pad_id=PAD_ID))
        for prompt, completions in zip(bed.processed, bed.completions, strict=True)
    ]
    for index, whole in enumerate(_outputs(module, *bed.batch)):
        for row, part in enumerate(parts):
            rows = whole[row * GROUP_SIZE : (row + 1) * GROUP_SIZE]
            length = part[index].shape[-1]
            assert (rows[..., :length] - part[index]).abs().max() < 1e-4
            assert not rows[..., length:].any()


@torch.no_grad()
def test_a_score_at_every_token_is_that_of_the_completion_up_to_there(bed: Bed) -> None:
    module = _models(bed)["reward"]
    prompts, completions = bed.batch
    so_far = module(prompts, completions, True)
    last = completions.mask.sum(1) - 1
    whole = module(prompts, completions)
    assert (so_far[torch.arange(len(last)), last] - whole).abs().max() < 1e-5
    begun = [[ids[:1] for ids in group] for group in bed.completions]
    first = module(prompts, collate_completions(begun, pad_id=PAD_ID))
    assert (so_far[:, 0] - first).abs().max() < 1e-4 < (first - whole).abs().max()


@pytest.mark.parametrize("role", ["policy", "reward", "critic"])
def test_the_order_of_prompts_only_reorders_the_outputs(omni: Bed, role: str) -> None:
    module = _models(omni)[role]
    order = np.random.default_rng(3).permutation(len(omni.prompts))
    shuffled = _outputs(
        module,
        collate_prompts([omni.processed[index] for index in order], pad_id=PAD_ID),
        collate_completions([omni.completions[index] for index in order], pad_id=PAD_ID),
    )
    for whole, moved in zip(_outputs(module, *omni.batch), shuffled, strict=True):
        grouped = whole.view(len(order), GROUP_SIZE, -1)[torch.tensor(order)]
        assert (grouped - moved.view(len(order), GROUP_SIZE, -1)).abs().max() < 1e-4


@pytest.mark.parametrize("role", ["policy", "reward", "critic"])
def test_padding_left_and_right_changes_nothing_whatever_it_holds(bed: Bed, role: str) -> None:
    module = _models(bed)[role]
    prompts, completions = bed.batch
    junk = 77
    more_prompt = PromptBatch(
        input_ids=nn.functional.pad(prompts.input_ids, (5, 0)).masked_fill(
            ~nn.functional.pad(prompts.mask, (5, 0)), junk
        ),
        mask=nn.functional.pad(prompts.mask, (5, 0)),
        position_ids=nn.functional.pad(prompts.position_ids, (5, 0), value=3),
        media=prompts.media,
    )
    mask = nn.functional.pad(completions.mask, (0, 3))
    more_completion = CompletionBatch(
        token_ids=nn.functional.pad(completions.token_ids, (0, 3)).masked_fill(~mask, junk),
        mask=mask,
        owner=completions.owner,
    )
    pairs = zip(_outputs(module, prompts, completions), _outputs(module, more_prompt, more_completion), strict=True)
    for before, after in pairs:
        length = before.shape[-1]
        assert (after[..., :length] - before).abs().max() < 1e-4
        assert not after[..., length:].any()


def test_encoded_features_equal_the_towers_inside(bed: Bed) -> None:
    architecture, model = bed.policy.decoder.architecture, bed.policy.decoder.model
    encoded: list[EncodedPrompt] = []
    with torch.no_grad():
        for prompt in bed.processed:
            features = tuple(
                architecture.encode(model, medium.kind, [medium.tensors])[0].numpy() for medium in prompt.media
            )
            assert [len(block) for block in features] == [medium.num_tokens for medium in prompt.media]
            encoded.append(EncodedPrompt(prompt.id, prompt.input_ids, prompt.position_ids, features))
    prompts, completions = bed.batch
    ahead = collate_prompts(encoded, pad_id=PAD_ID)
    assert len(ahead.media) == 1 and isinstance(ahead.media[0], Tensor)
    for inside, outside in zip(
        _outputs(bed.policy, prompts, completions), _outputs(bed.policy, ahead, completions), strict=True
    ):
        assert (inside - outside).abs().max() < 1e-5


def _tower_gradients(bed: Bed, rows: Sequence[int], *, blank: bool) -> tuple[float, dict[str, Tensor]]:
    decoder = bed.policy.decoder
    decoder.blank_media = bed.processor.smallest_media() if blank else {}
    decoder.model.zero_grad()
    logprobs, _ = bed.policy(
        collate_prompts([bed.processed[row] for row in rows], pad_id=PAD_ID),
        collate_completions([bed.completions[row] for row in rows], pad_id=PAD_ID),
    )
    logprobs.sum().backward()
    gradients = {
        name: gradient for name, gradient in _gradients(decoder.model).items() if decoder.architecture.is_tower(name)
    }
    decoder.model.zero_grad()
    decoder.blank_media = {}
    return float(logprobs.detach().sum()), gradients


def test_a_rank_without_media_still_gives_every_tower_a_gradient_of_zero(bed: Bed) -> None:
    decoder = bed.policy.decoder
    rows = [row for row in range(len(bed.prompts)) if not bed.kinds(row)]
    loss, gradients = _tower_gradients(bed, rows, blank=True)
    loss_without, gradients_without = _tower_gradients(bed, rows, blank=False)
    towers = {name for name, _ in decoder.model.named_parameters() if decoder.architecture.is_tower(name)}
    assert towers and gradients.keys() == towers - UNUSED
    assert not gradients_without
    assert not any(gradient.any() for gradient in gradients.values())
    assert loss == loss_without


def test_a_rank_with_pictures_alone_still_gives_the_audio_tower_a_gradient_of_zero(omni: Bed) -> None:
    rows = [row for row in range(len(omni.prompts)) if omni.kinds(row) == {MediaKind.IMAGE}]
    loss, gradients = _tower_gradients(omni, rows, blank=True)
    loss_without, gradients_without = _tower_gradients(omni, rows, blank=False)
    assert loss == loss_without
    for name, gradient in gradients.items():
        if name.startswith("model.audio_tower."):
            assert not gradient.any()
        else:
            # One more picture, blank and of weight zero: the others' gradients stay.
            assert torch.allclose(gradient, gradients_without[name], rtol=1e-4, atol=1e-6), name


@torch.no_grad()
def _by_hand(bed: Bed, temperature: float) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies where tokens 10, 11, 12 have probabilities 1/2, 1/4, 1/4, and placeholders huge logits."""
    policy = Policy(copy.deepcopy(bed.policy.decoder.model), bed.policy.decoder.architecture)
    hidden, vocabulary = policy.decoder.model.lm_head.weight.shape[::-1]
    head = nn.Linear(hidden, vocabulary)
    head.weight.zero_()
    head.bias.fill_(-1e4)
    head.bias[10:13] = torch.tensor([0.5, 0.25, 0.25]).log()
    head.bias[list(policy.decoder.placeholders.values())] = 100.0
    policy.decoder.model.lm_head = VocabularyHead(head, list(policy.decoder.placeholders.values()))
    prompts = collate_prompts(bed.processed[:1], pad_id=PAD_ID)
    completions = collate_completions([[np.array([10, 11, 12]), np.array([12])]], pad_id=PAD_ID)
    return policy(prompts, completions, temperature=temperature)


def test_logprobs_and_entropy_by_hand(bed: Bed) -> None:
    logprobs, entropy = _by_hand(bed, temperature=1.0)
    half, quarter = math.log(0.5), math.log(0.25)
    assert torch.allclose(logprobs, torch.tensor([[half, quarter, quarter], [quarter, 0.0, 0.0]]), atol=1e-6)
    bits = 1.5 * math.log(2)  # 1/2 * 1 bit + 2 * 1/4 * 2 bits
    assert torch.allclose(entropy, torch.tensor([[bits, bits, bits], [bits, 0.0, 0.0]]), atol=1e-6)


def test_a_temperature_of_one_half_squares_the_probabilities(bed: Bed) -> None:
    logprobs, entropy = _by_hand(bed, temperature=0.5)  # 1/4 : 1/16 : 1/16, so 2/3, 1/6, 1/6
    assert torch.allclose(logprobs[0], torch.tensor([2 / 3, 1 / 6, 1 / 6]).log(), atol=1e-6)
    assert torch.allclose(entropy[0], torch.full((3,), 2 / 3 * math.log(1.5) + 1 / 3 * math.log(6)), atol=1e-6)


def test_placeholder_tokens_have_probability_zero_and_the_others_sum_to_one(bed: Bed) -> None:
    hidden = torch.randn(5, 128, generator=torch.Generator().manual_seed(4))
    for temperature in (1.0, 0.3, 0.0):
        probabilities = bed.policy.logits(hidden, temperature=temperature).softmax(-1)
        assert not probabilities[:, list(bed.policy.decoder.placeholders.values())].any()
        assert torch.allclose(probabilities.sum(-1), torch.ones(5))
    gradients = torch.autograd.grad(
        bed.policy.logits(hidden, temperature=1.0).softmax(-1).square().sum(), [bed.policy.decoder.model.lm_head.weight]
    )
    assert torch.isfinite(gradients[0]).all()


def _with_token(completions: CompletionBatch, row: int, place: int, token: int) -> CompletionBatch:
    token_ids = completions.token_ids.clone()
    assert token_ids[row, place] != token
    token_ids[row, place] = token
    return replace(completions, token_ids=token_ids)


def test_a_score_is_read_at_the_last_real_token(bed: Bed) -> None:
    module = _models(bed)["reward"]
    prompts, completions = bed.batch
    row = int((completions.mask.sum(1) < completions.mask.shape[1]).nonzero()[0])
    length = int(completions.mask[row].sum())
    others = torch.arange(len(completions.mask)) != row
    (before,) = _outputs(module, prompts, completions)
    (padding,) = _outputs(module, prompts, _with_token(completions, row, length, 99))
    (last,) = _outputs(module, prompts, _with_token(completions, row, length - 1, 99))
    assert torch.equal(padding, before)
    assert abs(last[row] - before[row]) > 1e-3
    assert torch.equal(last[others], before[others])


def test_a_value_is_that_of_the_state_before_its_token(bed: Bed) -> None:
    module = _models(bed)["critic"]
    prompts, completions = bed.batch
    row = int(completions.mask.sum(1).argmax())
    place = int(completions.mask[row].sum()) - 2
    (before,) = _outputs(module, prompts, completions)
    (after,) = _outputs(module, prompts, _with_token(completions, row, place, 99))
    assert torch.equal(after[row, : place + 1], before[row, : place + 1])
    assert abs(after[row, place + 1] - before[row, place + 1]) > 1e-3
    others = torch.arange(len(completions.mask)) != row
    assert torch.equal(after[others], before[others])


def test_the_completions_of_a_group_do_not_see_each_other(omni: Bed) -> None:
    prompts, completions = omni.batch
    before, after = (
        _outputs(omni.policy, prompts, batch)[0] for batch in (completions, _with_token(completions, 0, 0, 99))
    )
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1:], before[1:])

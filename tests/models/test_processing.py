"""Prompts through the checkpoint's own processor: token counts, positions, keys, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import Dtype, MediaLimits
from pipeline.data.media import decode, encode_png, encode_video, encode_wav, resample
from pipeline.data.schema import Reason, RowError
from pipeline.data.table import PromptTable
from pipeline.models.batch import collate_prompts
from pipeline.models.checkpoint import load_model
from pipeline.models.processing import PromptProcessor
from pipeline.models.tokens import answer_ids
from pipeline.records import Audio, Image, MediaKind, Medium, Message, ProcessedPrompt, Prompt, Video

LIMITS = MediaLimits()
TASKS = {
    "digit": {MediaKind.IMAGE},
    "speech": {MediaKind.AUDIO},
    "sum": {MediaKind.IMAGE, MediaKind.AUDIO},
    "video": {MediaKind.VIDEO},
    "scene": {MediaKind.IMAGE},
    "text": set(),
}


def _processor(path: Path, max_prompt_tokens: int = 512) -> PromptProcessor:
    model, _ = load_model(path, dtype=Dtype.FLOAT32, trust_remote_code=False)
    return PromptProcessor(
        path=path, model=model, limits=LIMITS, max_prompt_tokens=max_prompt_tokens, trust_remote_code=False
    )


@pytest.fixture(scope="module")
def omni(tiny_checkpoint: Path) -> PromptProcessor:
    return _processor(tiny_checkpoint)


@pytest.fixture(scope="module")
def vl(tiny_vl_checkpoint: Path) -> PromptProcessor:
    return _processor(tiny_vl_checkpoint)


@pytest.fixture(scope="module")
def demo(demo_data: Path) -> dict[str, Prompt]:
    """One prompt of each task."""
    table = PromptTable(demo_data / "train.parquet")
    found: dict[str, Prompt] = {}
    for prompt in table.read([info.id for info in table.infos()]):
        assert isinstance(prompt, Prompt)
        found.setdefault(prompt.task, prompt)
    return found


def _ask(content: str, *media: Medium) -> Prompt:
    return Prompt(id="asked", task="asked", messages=(Message("user", content),), media=media, answer="none")


def _picture(height: int, width: int, seed: int = 0) -> Medium:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Medium(MediaKind.IMAGE, encode_png(pixels))


def _sound(seconds: float, sampling_rate: int = 16_000, seed: int = 0) -> Medium:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * sampling_rate)).astype(np.float32)
    return Medium(MediaKind.AUDIO, encode_wav(Audio(samples, sampling_rate)))


def _clip(num_frames: int, height: int, width: int, rate: float = 4.0, seed: int = 0) -> Medium:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    return Medium(MediaKind.VIDEO, encode_video(frames, rate))


def _runs(processor: PromptProcessor, prompt: ProcessedPrompt) -> list[tuple[MediaKind, int]]:
    """Kind and length of each run of placeholder tokens."""
    kinds = {token: kind for kind, token in processor.architecture.placeholder_ids(processor.model.config).items()}
    runs: list[tuple[MediaKind, int]] = []
    before = -1
    for token in prompt.input_ids.tolist():
        if token in kinds:
            runs.append((kinds[token], runs.pop()[1] + 1 if token == before else 1))
        before = token
    return runs


def _positions_of_the_stock_model(processor: PromptProcessor, prompts: list[Prompt]) -> list[np.ndarray[Any, Any]]:
    """What the stock model's own forward hands to its decoder for one padded batch of raw inputs, a row a prompt."""
    decoded = [decode(medium, LIMITS) for prompt in prompts for medium in prompt.media]
    stock = processor.processor
    clips = [item for item in decoded if isinstance(item, Video)]
    sounds = [resample(item, 16_000).samples for item in decoded if isinstance(item, Audio)]
    videos: dict[str, Any] = {"size": dict(stock.video_processor.size), "do_sample_frames": False}
    if MediaKind.AUDIO in processor.architecture.modalities and clips:
        videos["fps"] = clips[0].frames_per_second
    elif clips:
        videos["video_metadata"] = [{"fps": clip.frames_per_second, "total_num_frames": None} for clip in clips]
    media: dict[str, Any] = {
        "images": [item.pixels for item in decoded if isinstance(item, Image)],
        "videos": [clip.frames for clip in clips],
        "audio": sounds,
    }
    inputs = stock(
        text=[processor.template(prompt) for prompt in prompts],
        videos_kwargs=videos,
        padding=True,
        return_tensors="pt",
        **{name: items for name, items in media.items() if items},
    )
    seen: list[torch.Tensor] = []
    hook = processor.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        processor.model(**inputs)
    hook.remove()
    mask = inputs["attention_mask"].bool()
    return [seen[0][:, row, mask[row]].numpy() for row in range(len(prompts))]


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_of_each_task_has_a_placeholder_run_for_each_medium(
    omni: PromptProcessor, demo: dict[str, Prompt], task: str
) -> None:
    processed = omni(demo[task])
    assert {medium.kind for medium in processed.media} == TASKS[task]
    assert [medium.kind for medium in processed.media] == [medium.kind for medium in demo[task].media]
    assert _runs(omni, processed) == [(medium.kind, medium.num_tokens) for medium in processed.media]
    assert processed.input_ids.dtype == processed.position_ids.dtype == np.int64
    assert processed.position_ids.shape == (3, len(processed.input_ids))


@pytest.mark.parametrize("task", [task for task, kinds in TASKS.items() if MediaKind.AUDIO not in kinds])
def test_the_same_holds_for_the_second_architecture(vl: PromptProcessor, demo: dict[str, Prompt], task: str) -> None:
    processed = vl(demo[task])
    assert _runs(vl, processed) == [(medium.kind, medium.num_tokens) for medium in processed.media]


def test_token_counts_by_hand(omni: PromptProcessor) -> None:
    # Patches of 4 pixels, merged 2 by 2: a token is 8x8 pixels, and 2 frames in time.
    # A second is 100 mel frames; the convolution halves them, the pooling halves them again.
    prompt = _ask("<image><audio><video>", _picture(16, 24), _sound(1.0), _clip(4, 16, 32))
    assert [medium.num_tokens for medium in omni(prompt).media] == [2 * 3, 25, 2 * 2 * 4]


def test_three_media_of_mixed_kinds_stay_in_order_between_their_words(omni: PromptProcessor) -> None:
    prompt = _ask("One <image> two <audio> three <video> four", _picture(24, 24), _sound(0.4), _clip(4, 24, 24))
    processed = omni(prompt)
    assert [kind for kind, _ in _runs(omni, processed)] == [MediaKind.IMAGE, MediaKind.AUDIO, MediaKind.VIDEO]
    text = omni.processor.tokenizer.decode(processed.input_ids, skip_special_tokens=True)
    assert text.split() == ["user", "One", "two", "three", "four", "assistant"]


def test_several_media_of_one_kind_keep_their_own_tensors(omni: PromptProcessor) -> None:
    pictures, sounds = [_picture(16, 24, 1), _picture(32, 16, 2)], [_sound(0.3, seed=1), _sound(0.5, 8_000, seed=2)]
    together = omni(_ask("<image><audio><image><audio>", pictures[0], sounds[0], pictures[1], sounds[1]))
    for place, medium in ((0, pictures[0]), (1, sounds[0]), (2, pictures[1]), (3, sounds[1])):
        alone = omni(_ask(medium.kind.tag, medium)).media[0]
        found = together.media[place]
        assert (found.key, found.num_tokens, found.tensors.keys()) == (
            alone.key,
            alone.num_tokens,
            alone.tensors.keys(),
        )
        for name, tensor in alone.tensors.items():
            assert np.array_equal(found.tensors[name], tensor)


@pytest.mark.parametrize("name", ["omni", "vl"])
def test_two_videos_fit_into_one_prompt(request: pytest.FixtureRequest, name: str) -> None:
    processor: PromptProcessor = request.getfixturevalue(name)
    prompt = _ask("<video><image><video>", _clip(4, 16, 24), _picture(16, 16), _clip(6, 24, 16, seed=1))
    processed = processor(prompt)
    assert [medium.num_tokens for medium in processed.media] == [2 * 6, 4, 3 * 6]
    assert np.array_equal(processed.position_ids, _positions_of_the_stock_model(processor, [prompt])[0])


def test_a_prompt_without_media_counts_its_positions(omni: PromptProcessor, vl: PromptProcessor) -> None:
    for processor in (omni, vl):
        processed = processor(_ask("Which is larger, 3 or 4?"))
        assert processed.media == ()
        assert np.array_equal(processed.position_ids, np.tile(np.arange(len(processed.input_ids)), (3, 1)))


def test_positions_equal_those_of_the_stock_models_own_forward(omni: PromptProcessor, demo: dict[str, Prompt]) -> None:
    mixed = _ask("a<audio>b<video><image>c<audio>", _sound(0.7), *demo["video"].media, _picture(24, 40), _sound(0.2))
    prompts = [*demo.values(), mixed]
    for prompt, expected in zip(prompts, _positions_of_the_stock_model(omni, prompts), strict=True):
        assert np.array_equal(omni(prompt).position_ids, expected)


def test_positions_of_the_second_architecture_do_so_too(vl: PromptProcessor, demo: dict[str, Prompt]) -> None:
    mixed = _ask("a<video><image>c<image>", *demo["video"].media, _picture(24, 40), _picture(16, 16))
    prompts = [mixed, *(demo[task] for task, kinds in TASKS.items() if MediaKind.AUDIO not in kinds)]
    for prompt, expected in zip(prompts, _positions_of_the_stock_model(vl, prompts), strict=True):
        assert np.array_equal(vl(prompt).position_ids, expected)


@pytest.mark.parametrize("rate", [1.0, 3.0, 7.5])
def test_positions_follow_the_frame_rate_of_a_video(omni: PromptProcessor, vl: PromptProcessor, rate: float) -> None:
    prompt = _ask("<video>", _clip(7, 16, 16, rate))
    for processor in (omni, vl):
        positions = processor(prompt).position_ids
        assert np.array_equal(positions, _positions_of_the_stock_model(processor, [prompt])[0])


def test_positions_grow_faster_where_frames_are_slower(vl: PromptProcessor) -> None:
    # 4 positions a second, 2 frames a grid: at 1 frame a second the second grid starts 8 positions later, at 4 two.
    for rate, step in ((1.0, 8), (4.0, 2)):
        processed = vl(_ask("<video>", _clip(4, 16, 16, rate)))
        placeholder = vl.architecture.placeholder_ids(vl.model.config)[MediaKind.VIDEO]
        times = processed.position_ids[0, processed.input_ids == placeholder]
        assert np.array_equal(times - times[0], np.repeat([0, step], 4))


@pytest.mark.parametrize(("height", "width"), [(1, 12), (3, 40), (12, 1), (2, 2)])
def test_a_picture_a_few_pixels_high_keeps_its_shape(omni: PromptProcessor, height: int, width: int) -> None:
    """Three rows of pixels are not three channels."""
    _, rows, columns = omni(_ask("<image>", _picture(height, width))).media[0].tensors["image_grid_thw"]
    assert (rows > columns, rows < columns) == (height > width, height < width)


@pytest.mark.parametrize("kind", list(MediaKind))
def test_blanked_media_keep_their_token_counts_and_lose_their_content(omni: PromptProcessor, kind: MediaKind) -> None:
    prompt = _ask("a<image>b<audio>c<video>", _picture(24, 24), _sound(0.4), _clip(4, 24, 24))
    shown, blanked = omni(prompt), omni(prompt, blanked=frozenset([kind]))
    assert np.array_equal(shown.input_ids, blanked.input_ids)
    assert np.array_equal(shown.position_ids, blanked.position_ids)
    for before, after in zip(shown.media, blanked.media, strict=True):
        assert before.num_tokens == after.num_tokens
        name = next(name for name in before.tensors if "pixel" in name or "features" in name)
        assert before.tensors[name].shape == after.tensors[name].shape
        assert np.array_equal(before.tensors[name], after.tensors[name]) == (before.kind is not kind)
        assert (before.key == after.key) == (before.kind is not kind)
        if after.kind is kind and kind is not MediaKind.AUDIO:
            assert after.tensors[name].std(0).max() < 1e-5  # the same patch everywhere


def test_equal_media_have_equal_keys_in_any_file_and_in_any_prompt(omni: PromptProcessor, demo_data: Path) -> None:
    picture = _picture(24, 24)
    renamed = replace(picture, path="elsewhere.png")
    one, two = omni(_ask("<image> is this?", picture)), omni(_ask("See <image><image>", renamed, _picture(24, 24, 1)))
    assert one.media[0].key == two.media[0].key
    assert two.media[1].key != two.media[0].key
    for name, tensor in one.media[0].tensors.items():
        assert np.array_equal(tensor, two.media[0].tensors[name])


def test_the_settings_of_the_processor_are_part_of_the_key(
    omni: PromptProcessor, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other, equal = tmp_path / "other", tmp_path / "equal"
    shutil.copytree(tiny_checkpoint, other)
    shutil.copytree(tiny_checkpoint, equal)
    omni.processor.save_pretrained(equal)
    settings = json.loads((other / "processor_config.json").read_text())
    settings["image_processor"]["size"]["longest_edge"] //= 2
    (other / "processor_config.json").write_text(json.dumps(settings))
    prompt = _ask("<image>", _picture(24, 24))
    same, different = _processor(equal)(prompt).media[0], _processor(other)(prompt).media[0]
    assert same.key == omni(prompt).media[0].key
    assert different.key != same.key
    assert different.key.split(":")[0] == same.key.split(":")[0]  # of the content


def _refused(processor: PromptProcessor, prompt: Prompt) -> RowError:
    with pytest.raises(RowError) as caught:
        processor(prompt)
    return caught.value


def test_a_prompt_that_is_too_long_is_refused_with_both_lengths(tiny_checkpoint: Path) -> None:
    prompt = _ask("<image>Read it.", _picture(64, 64))
    length = len(_processor(tiny_checkpoint)(prompt).input_ids)
    assert len(_processor(tiny_checkpoint, length)(prompt).input_ids) == length
    error = _refused(_processor(tiny_checkpoint, length - 1), prompt)
    assert error.reason is Reason.PROMPT_TOO_LONG
    assert str(length) in error.detail and f"data.max_prompt_tokens={length - 1}" in error.detail


def test_a_sound_is_refused_by_a_model_that_cannot_hear(vl: PromptProcessor) -> None:
    error = _refused(vl, _ask("<image><audio>", _picture(16, 16), _sound(0.4)))
    assert error.reason is Reason.UNSUPPORTED_MODALITY
    assert "audio" in error.detail


def test_a_sound_that_the_processor_would_cut_is_refused(omni: PromptProcessor) -> None:
    assert omni(_ask("<audio>", _sound(2.0))).media[0].num_tokens == 50
    for rate in (16_000, 22_050):
        error = _refused(omni, _ask("<audio>", _sound(2.01, rate)))
        assert error.reason is Reason.TRUNCATED_BY_PROCESSOR
        assert "2.01 s" in error.detail and "2 s" in error.detail


def test_the_shortest_sound_within_limits_has_a_token(omni: PromptProcessor) -> None:
    for rate in (8_000, 16_000, 44_100):
        assert omni(_ask("<audio>", _sound(LIMITS.min_seconds, rate))).media[0].num_tokens == 1


def test_each_video_of_a_prompt_has_positions_by_its_own_rate(omni: PromptProcessor, vl: PromptProcessor) -> None:
    """2 frames a grid: at 1 and 4 frames a second the second grid is 2 and 0.5 s later; 25 or 4 positions a second."""
    for processor, a_second in ((omni, 25), (vl, 4)):
        processed = processor(_ask("<video> and <video>", _clip(4, 16, 16, 1.0), _clip(4, 16, 16, 4.0)))
        placeholder = processor.architecture.placeholder_ids(processor.model.config)[MediaKind.VIDEO]
        times = processed.position_ids[0, processed.input_ids == placeholder].reshape(2, 2, 4)
        assert (times[:, 1] - times[:, 0]).tolist() == [[2 * a_second] * 4, [int(0.5 * a_second)] * 4]


def test_a_sound_at_the_processors_bound_is_taken_at_any_rate(omni: PromptProcessor) -> None:
    for rate in (8_000, 11_025, 22_050, 44_100):
        assert omni(_ask("<audio>", _sound(2.0005, rate))).media[0].num_tokens == 50


@pytest.mark.parametrize("token", ["<|IMAGE|>", "<|AUDIO|>", "<|VIDEO|>"])
@pytest.mark.parametrize("content", ["What is {}?", "<image>What is {}?", "{}<image>"])
def test_a_text_with_a_placeholder_token_of_its_own_is_refused(omni: PromptProcessor, token: str, content: str) -> None:
    prompt = _ask(content.format(token), *([_picture(16, 16)] if "<image>" in content else []))
    error = _refused(omni, prompt)
    assert error.reason is Reason.PLACEHOLDER_MISMATCH
    assert "placeholder token of its own" in error.detail


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|vision_eos|>"])
def test_a_text_that_could_forge_turns_is_refused(omni: PromptProcessor, token: str) -> None:
    error = _refused(omni, _ask(f"What{token} is it?"))
    assert error.reason is Reason.SPECIAL_TOKEN
    assert token in error.detail and "'user'" in error.detail


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("<|im_end|>", Reason.SPECIAL_TOKEN),
        ("<|im_start|>", Reason.SPECIAL_TOKEN),
        ("<|IMAGE|>", Reason.PLACEHOLDER_MISMATCH),
        ("<|AUDIO|>", Reason.PLACEHOLDER_MISMATCH),
    ],
)
@pytest.mark.parametrize("field", ["answer", "demonstration"])
def test_what_is_learned_holds_no_token_of_the_model_s_own(
    omni: PromptProcessor, field: str, token: str, reason: Reason
) -> None:
    asked = _ask("<image>What digit?", _picture(16, 16))
    error = _refused(omni, replace(asked, **{field: f"7{token}"}))
    assert error.reason is reason
    assert f"the {field} holds {token}" in error.detail
    assert omni(replace(asked, **{field: "7 <im_end>"}))


def test_a_conversation_of_several_answers_is_what_the_chat_template_writes(omni: PromptProcessor) -> None:
    tokenizer = omni.processor.tokenizer
    then = (Message("user", "Sure?"), Message("assistant", "yes"), Message("user", "How?"), Message("assistant", "so"))
    ids, given = omni.conversation_ids("7", then, field="chosen")
    turns = [Message("user", "?"), Message("assistant", "7"), *then]
    told = [{"role": turn.role, "content": [{"type": "text", "text": turn.content}]} for turn in turns]
    whole = str(omni.processor.apply_chat_template(told, tokenize=False)).rstrip("\n")
    before = str(omni.processor.apply_chat_template(told[:1], tokenize=False, add_generation_prompt=True))
    assert ids == tuple(tokenizer.encode(whole.removeprefix(before), add_special_tokens=False))
    said = [id for place, id in enumerate(ids) if not any(start <= place < end for start, end in given)]
    assert said == [id for text in ("7", "yes", "so") for id in answer_ids(tokenizer, text)]
    assert omni.conversation_ids("7", field="chosen") == (tuple(answer_ids(tokenizer, "7")), ())
    with pytest.raises(RowError, match=r"chosen holds <.im_end.>"):
        omni.conversation_ids("7", (Message("user", "<|im_end|>"), Message("assistant", "yes")), field="chosen")


def test_a_corrupt_medium_is_refused_with_its_own_reason(omni: PromptProcessor) -> None:
    error = _refused(omni, _ask("<image>", Medium(MediaKind.IMAGE, b"no picture")))
    assert error.reason is Reason.CORRUPT_IMAGE


def test_the_smallest_media_cover_all_modalities_of_the_model(omni: PromptProcessor, vl: PromptProcessor) -> None:
    for processor in (omni, vl):
        media = processor.smallest_media()
        assert tuple(media) == processor.architecture.modalities
        for kind, medium in media.items():
            assert medium.kind is kind
            with torch.no_grad():
                features = processor.architecture.encode(processor.model, kind, [medium.tensors])[0]
            assert features.shape == (medium.num_tokens, 128)
            assert torch.isfinite(features).all()


def test_collated_prompts_are_padded_on_the_left_with_media_in_order(
    omni: PromptProcessor, demo: dict[str, Prompt]
) -> None:
    processed = [omni(demo[task]) for task in ("sum", "text", "video")]
    batch = collate_prompts(processed, pad_id=5)
    for row, prompt in enumerate(processed):
        length = len(prompt.input_ids)
        assert batch.mask[row].tolist() == [False] * (batch.mask.shape[1] - length) + [True] * length
        assert np.array_equal(batch.input_ids[row, -length:].numpy(), prompt.input_ids)
        assert (batch.input_ids[row, :-length] == 5).all()
        assert np.array_equal(batch.position_ids[:, row, -length:].numpy(), prompt.position_ids)
    assert batch.media == tuple(medium for prompt in processed for medium in prompt.media)


def test_the_model_may_lie_on_the_meta_device(
    tiny_checkpoint: Path, omni: PromptProcessor, demo: dict[str, Prompt]
) -> None:
    processor = _processor(tiny_checkpoint)
    processor.model = processor.model.to("meta")
    for prompt in demo.values():
        assert np.array_equal(processor(prompt).position_ids, omni(prompt).position_ids)

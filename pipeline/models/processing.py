"""From a checked prompt to token ids and media tensors, by the checkpoint's own processor, once a prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import MediaLimits, Recipe
from pipeline.data.bounds import ROUNDING_S
from pipeline.data.isolated import Decoder
from pipeline.data.media import blank, content_key, resample
from pipeline.data.schema import Reason, RowError, split_content
from pipeline.models.architectures import Architecture, architecture_of
from pipeline.models.tokens import answer_ids, beginning, end_turns
from pipeline.records import (
    Audio,
    DecodedMedium,
    Ids,
    Image,
    MediaKind,
    MediumTensors,
    Message,
    ProcessedPrompt,
    Prompt,
    Spans,
    Video,
)

MEDIA_PROCESSORS = ("image_processor", "video_processor", "feature_extractor")


def load_processor(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The processor in a Hugging Face directory; its tokenizer's end token is that of a turn."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    end_turns(processor)
    return processor


def processor_alone(recipe: Recipe, path: Path) -> PromptProcessor:
    """A prompt processor without the model's weights, for counting tokens."""
    trust = recipe.model.trust_remote_code
    model_class = architecture_of(path, trust_remote_code=trust).model_class()
    config = model_class.config_class.from_pretrained(path, trust_remote_code=trust)
    with torch.device("meta"):
        model = model_class(config)
    return PromptProcessor(
        path=path,
        model=model,
        limits=recipe.data.limits,
        max_prompt_tokens=recipe.data.max_prompt_tokens,
        trust_remote_code=trust,
    )


class PromptProcessor:
    """Decodes a prompt's media within bounds, applies the chat template and runs the processor.

    Args:
        model: gives rotary positions; its weights are not used, so that it may lie on the meta device.
    """

    def __init__(self, *, path: Path, model: Any, limits: MediaLimits, max_prompt_tokens: int, trust_remote_code: bool):
        self.processor = load_processor(path, trust_remote_code=trust_remote_code)
        self.architecture: Architecture = architecture_of(path, trust_remote_code=trust_remote_code)
        self.model = model
        self.decoder = Decoder(limits)
        self.max_prompt_tokens = max_prompt_tokens
        tokenizer = self.processor.tokenizer
        placeholders = list(self.architecture.placeholder_ids(model.config).values())
        self._placeholders = [str(token) for token in tokenizer.convert_ids_to_tokens(placeholders)]
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        # Placeholders have a check of their own, which counts them against the media.
        self._special_tokens = [
            token for token in {*added, *tokenizer.all_special_tokens} if token not in self._placeholders
        ]
        self._beginning = beginning(tokenizer)
        # Of the media processors alone: the tokenizer's text names its directory, and changes no tensor.
        parts = [getattr(self.processor, name, None) for name in MEDIA_PROCESSORS]
        self._settings = hashlib.sha256(str(parts).encode()).hexdigest()

    def __call__(self, prompt: Prompt, *, blanked: frozenset[MediaKind] = frozenset()) -> ProcessedPrompt:
        """Processes one prompt; media of the kinds in `blanked` become black or silent, of the same size.

        Raises:
            RowError: a medium is corrupt or out of bounds, its modality is not taken, the prompt is too long.
        """
        for medium in prompt.media:
            if medium.kind not in self.architecture.modalities:
                raise RowError(Reason.UNSUPPORTED_MODALITY, f"the model takes no {medium.kind}")
        decoded = [self.decoder.decode(medium) for medium in prompt.media]
        kinds = [medium.kind for medium in prompt.media]
        shown = [blank(item) if kind in blanked else item for kind, item in zip(kinds, decoded, strict=True)]
        return self.process(prompt.id, self.template(prompt), kinds, shown)

    def template(self, prompt: Prompt) -> str:
        """The prompt in the checkpoint's chat format, with one placeholder a medium.

        Raises:
            RowError: a message holds a special token, with which its text could forge turns; or an answer does.
        """
        for message in prompt.messages:  # Their placeholders are counted against the media.
            self._refuse(message.content, self._special_tokens, Reason.SPECIAL_TOKEN, f"a message by {message.role!r}")
        self.check_learned(prompt.answer, "the answer")
        self.check_learned(prompt.demonstration, "the demonstration")
        return self._templated(prompt.messages)

    def _templated(self, messages: Sequence[Message]) -> str:
        turns = [
            {
                "role": message.role,
                "content": [
                    {"type": str(part)} if isinstance(part, MediaKind) else {"type": "text", "text": part}
                    for part in split_content(message.content)
                ],
            }
            for message in messages
        ]
        return str(self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def conversation_ids(self, answer: str, then: Sequence[Message] = (), *, field: str) -> tuple[Ids, Spans]:
        """The tokens of an answer and of the turns that followed it, and where in them the user speaks.

        Each answer ends with the end token, as one alone does; the chat template has what stands between them.

        Args:
            then: the user's and the assistant's in turn.
            field: what the conversation is called.

        Raises:
            RowError: a text holds a special token, or the chat template writes an answer otherwise than it was.
        """
        for text in (answer, *(turn.content for turn in then)):
            self.check_learned(text, field)
        tokenizer = self.processor.tokenizer
        ids, given = answer_ids(tokenizer, answer), list[tuple[int, int]]()
        said, last = [Message("user", "?")], Message("assistant", answer)
        for user, following in zip(then[::2], then[1::2], strict=True):
            before = self._templated(said) + last.content
            said += [last, user]
            text = self._templated(said)
            if not text.startswith(before):
                raise RowError(
                    Reason.BAD_PREFERENCE,
                    f"{field}: the chat template writes the answer {last.content!r} otherwise inside of a conversation",
                )
            between = text.removeprefix(before).removeprefix(tokenizer.eos_token)
            start = len(ids)
            ids += tokenizer.encode(between, add_special_tokens=False)
            given.append((start, len(ids)))
            ids += answer_ids(tokenizer, following.content)
            last = following
        return tuple(ids), tuple(given)

    def check_learned(self, text: str | None, field: str) -> None:
        """Makes sure that a text which a model is to say, or to prefer, is text alone.

        A placeholder would stand for features that are not there; an end token would be learned in the middle.

        Raises:
            RowError: it holds a special token or a placeholder.
        """
        self._refuse(text or "", self._special_tokens, Reason.SPECIAL_TOKEN, field)
        self._refuse(text or "", self._placeholders, Reason.PLACEHOLDER_MISMATCH, field)

    @staticmethod
    def _refuse(text: str, tokens: Sequence[str], reason: Reason, field: str) -> None:
        found = sorted(token for token in tokens if token in text)
        if found:
            raise RowError(reason, f"{field} holds {', '.join(found)}, a token of the model's own; take it out")

    def process(
        self, name: str, text: str, kinds: Sequence[MediaKind], media: Sequence[DecodedMedium]
    ) -> ProcessedPrompt:
        """Runs the processor on one templated prompt and splits its output into single media."""
        self._check_text(text, kinds)
        outputs = self._run(text, media)
        input_ids = np.asarray(outputs["input_ids"][0], np.int64)
        if len(input_ids) > self.max_prompt_tokens:
            raise RowError(
                Reason.PROMPT_TOO_LONG,
                f"{len(input_ids)} tokens, placeholders included, are more than data.max_prompt_tokens="
                f"{self.max_prompt_tokens}",
            )
        parts = self.architecture.split(self.processor, outputs, kinds)
        tensors = tuple(
            MediumTensors(kind, f"{content_key(item)}:{self._settings[:16]}", num_tokens, arrays)
            for kind, item, (arrays, num_tokens) in zip(kinds, media, parts, strict=True)
        )
        self._check_placeholders(input_ids, tensors)
        positions = self.architecture.position_ids(
            self.model, torch.from_numpy(input_ids), [(medium.kind, medium.tensors) for medium in tensors]
        )
        return ProcessedPrompt(name, input_ids, positions.cpu().numpy(), tensors)

    def stock_inputs(self, prompt: Prompt, token_ids: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """What the model's own forward takes for a prompt and a completion `token_ids` [T], a batch of one."""
        decoded = [self.decoder.decode(medium) for medium in prompt.media]
        inputs = {name: torch.as_tensor(array) for name, array in self._run(self.template(prompt), decoded).items()}
        completion = torch.as_tensor(token_ids)[None]
        length = inputs["input_ids"].shape[1]
        for name, tensor in list(inputs.items()):
            if tensor.shape == (1, length):
                # Ids go on with the completion, the mask with ones, the types of multimodal tokens with text.
                rest = {"input_ids": completion, "attention_mask": torch.ones_like(completion)}
                inputs[name] = torch.cat([tensor, rest.get(name, torch.zeros_like(completion)).to(tensor.dtype)], dim=1)
        return inputs

    def _run(self, text: str, media: Sequence[DecodedMedium]) -> dict[str, Any]:
        pictures = [item.pixels for item in media if isinstance(item, Image)]
        videos = [item for item in media if isinstance(item, Video)]
        sounds = [item for item in media if isinstance(item, Audio)]
        # The chat template has put all special tokens, but for a BOS that some leave to the tokenizer.
        text = text if text.startswith(self._beginning) else self._beginning + text
        arguments: dict[str, Any] = {"text": [text], "return_tensors": "np", "add_special_tokens": False}
        if pictures:
            arguments["images"] = pictures
        if videos:
            arguments["videos"] = [video.frames for video in videos]
        if sounds:
            rate = self.processor.feature_extractor.sampling_rate
            longest_s = self.processor.feature_extractor.chunk_length
            waves = [resample(sound, rate).samples for sound in sounds]
            for wave in waves:
                if len(wave) > (longest_s + ROUNDING_S) * rate:
                    raise RowError(
                        Reason.TRUNCATED_BY_PROCESSOR,
                        f"a sound of {len(wave) / rate:.2f} s; the model's processor cuts at {longest_s} s",
                    )
            arguments["audio"] = waves
        rates = [video.frames_per_second for video in videos]
        return self.architecture.run(self.processor, arguments, rates)

    def _check_text(self, text: str, kinds: Sequence[MediaKind]) -> None:
        # Before the processor runs: it raises errors of its own for them.
        for kind, token_id in self.architecture.placeholder_ids(self.model.config).items():
            token = str(self.processor.tokenizer.convert_ids_to_tokens(token_id))
            found, expected = text.count(token), list(kinds).count(kind)
            if found != expected:
                raise RowError(
                    Reason.PLACEHOLDER_MISMATCH,
                    f"{found} {token} for {expected} media of kind {kind}; "
                    "does the text hold a placeholder token of its own?",
                )

    def _check_placeholders(self, input_ids: np.ndarray[Any, Any], media: Sequence[MediumTensors]) -> None:
        expected = {kind: sum(item.num_tokens for item in media if item.kind is kind) for kind in MediaKind}
        for kind, token in self.architecture.placeholder_ids(self.model.config).items():
            found = int((input_ids == token).sum())
            if found != expected[kind]:
                raise RowError(
                    Reason.PLACEHOLDER_MISMATCH,
                    f"{found} {kind} placeholders for {expected[kind]} {kind} features",
                )

    def smallest_media(self) -> dict[MediaKind, MediumTensors]:
        """A small blank medium of each modality, for ranks that must run a tower that their rows do not need."""
        blanks: dict[MediaKind, DecodedMedium] = {
            MediaKind.IMAGE: Image(np.zeros((32, 32, 3), np.uint8)),
            MediaKind.AUDIO: Audio(np.zeros(16_000 // 4, np.float32), 16_000),
            MediaKind.VIDEO: Video(np.zeros((2, 32, 32, 3), np.uint8), 2.0),
        }
        media: dict[MediaKind, MediumTensors] = {}
        for kind in self.architecture.modalities:
            turn = [{"role": "user", "content": [{"type": str(kind)}]}]
            text = str(self.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
            media[kind] = self.process("blank", text, [kind], [blanks[kind]]).media[0]
        return media

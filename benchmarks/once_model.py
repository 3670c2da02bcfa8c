"""The models and prompts of `once`: random weights, pictures of a given number of tokens."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.models.architectures import ARCHITECTURES
from pipeline.models.forward import Policy, RewardHead, RewardModel, ScalarHead, ValueModel
from pipeline.records import MediaKind, MediumTensors, ProcessedPrompt

IMAGE, AUDIO, VIDEO, START = 4, 5, 6, 7
TEXT_TOKENS = 24

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "text": {
            "vocab_size": 1024,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5]},
        },
        "vision": {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "patch_size": 4},
        "audio": {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128},
    },
    # The sizes of Qwen2.5-Omni-3B's thinker.
    "3b": {
        "text": {
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "intermediate_size": 11_008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
        },
        "vision": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14},
        "audio": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120},
    },
}


def build(size: str, device: torch.device) -> Any:
    """An omni thinker with random weights, bfloat16 on a GPU."""
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    parts = SIZES[size]
    hidden = parts["text"]["hidden_size"]
    patch = {"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": hidden}
    config = Qwen2_5OmniThinkerConfig(
        text_config=parts["text"],
        vision_config={**parts["vision"], **patch},
        audio_config={**parts["audio"], "output_dim": hidden},
        image_token_index=IMAGE,
        audio_token_index=AUDIO,
        video_token_index=VIDEO,
        audio_start_token_id=START + 1,
        audio_end_token_id=START + 2,
        # No declared field, but the rotary positions read it.
        vision_start_token_id=START,  # pyright: ignore[reportCallIssue]
    )
    torch.manual_seed(0)
    with device:  # Where 4.7 billion random numbers are drawn: one CPU thread takes half a minute for them.
        model: Any = Qwen2_5OmniThinkerForConditionalGeneration(config)
    return model.to(torch.bfloat16 if device.type == "cuda" else torch.float32).eval()


class Models:
    """Policy, reference, reward model and critic with frozen towers, and the optimizers of those that learn."""

    def __init__(self, size: str, device: torch.device):
        self.device = device
        self.architecture = ARCHITECTURES["qwen2_5_omni_thinker"]
        self.patch = int(SIZES[size]["vision"]["patch_size"])
        model = build(size, device)
        hidden = int(SIZES[size]["text"]["hidden_size"])
        self.reward = RewardModel(copy.deepcopy(model), self.architecture, RewardHead(hidden)).to(device)
        self.critic = ValueModel(copy.deepcopy(model), self.architecture, ScalarHead(hidden)).to(device)
        self.reference = Policy(copy.deepcopy(model), self.architecture).to(device)
        self.policy = Policy(model, self.architecture).to(device)
        self.all = [self.policy, self.reference, self.reward, self.critic]
        self.policy_adam, self.critic_adam = (self._adam(each) for each in (self.policy, self.critic))
        self._stock = [(each.decoder, each.decoder.embed) for each in self.all]
        self._encode = self.architecture.encode

    def _adam(self, module: Any) -> torch.optim.AdamW:
        for name, parameter in module.decoder.model.named_parameters():
            parameter.requires_grad_(not self.architecture.is_tower(name))
        return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def clock(self) -> float:
        """Seconds: of this process's CPU, which other work on the machine hardly changes; on a GPU, wall time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def watch(self, counts: dict[str, int]) -> None:
        """Counts media that a tower encodes, and prompt tokens that a language model runs, in all models."""

        def encode(model: Any, kind: MediaKind, media: Sequence[Any]) -> Any:
            counts["towers"] += len(media)
            return self._encode(model, kind, media)

        setattr(self.architecture, "encode", encode)  # noqa: B010
        for decoder, embed in self._stock:

            def counted(prompts: Any, embed: Any = embed) -> Any:
                counts["prompt_tokens"] += int(prompts.mask.sum())
                return embed(prompts)

            decoder.embed = counted

    @property
    def num_weights(self) -> int:
        """Of the language model, which all tokens pass."""
        return sum(p.numel() for n, p in self.policy.named_parameters() if ".language_model." in n or "lm_head" in n)


def ceilings(device: torch.device) -> tuple[float, float]:
    """Of a GPU, measured: bfloat16 operations a second of a large product, bytes a second of a large copy."""
    one, other = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    large = torch.empty(2**32, dtype=torch.uint8, device=device)
    target = torch.empty_like(large)
    product_s, copy_s = (_seconds(work) for work in (lambda: one @ other, lambda: target.copy_(large)))
    return 2 * 8192**3 / product_s, 2 * 2**32 / copy_s


def _seconds(work: Callable[[], Any], repeats: int = 10) -> float:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def pictures(number: int, num_tokens: int) -> list[tuple[int, int]]:
    """Heights and widths, in merged patches, of `number` pictures of `num_tokens` tokens each."""
    height = 2 ** (int(math.log2(num_tokens)) // 2)
    if height * (num_tokens // height) != num_tokens:
        raise ValueError(f"--media-tokens {num_tokens}: give a power of two")
    return [(height, num_tokens // height)] * number


def prompts_with(models: Models, shapes: Sequence[tuple[int, int]]) -> list[ProcessedPrompt]:
    """One prompt a picture: random pixels between random words."""
    generator = np.random.default_rng(0)
    prompts: list[ProcessedPrompt] = []
    for row, (height, width) in enumerate(shapes):
        grid = np.array([1, 2 * height, 2 * width])
        pixels = generator.standard_normal((int(grid.prod()), 3 * 2 * models.patch**2)).astype(np.float32)
        tensors = {"pixel_values": pixels, "image_grid_thw": grid}
        words = generator.integers(16, 256, TEXT_TOKENS)
        half = TEXT_TOKENS // 2
        ids = np.concatenate([words[:half], [START], np.full(height * width, IMAGE), words[half:]])
        positions = models.architecture.position_ids(
            models.policy.decoder.model, torch.from_numpy(ids).to(models.device), [(MediaKind.IMAGE, tensors)]
        )
        medium = MediumTensors(MediaKind.IMAGE, f"picture-{row}", height * width, tensors)
        prompts.append(ProcessedPrompt(str(row), ids, positions.cpu().numpy(), (medium,)))
    return prompts

"""The same on a GPU as on the CPU: products, sampling, scores, and a DeepSpeed world over NCCL at every ZeRO stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.engine.files import Folder
from actors.engine.state import TensorFiles
from pipeline.config import Device, Dtype, MediaLimits
from pipeline.data.table import PromptTable
from pipeline.generation.generate import Sample, generate, sample_seed
from pipeline.models.batch import collate_completions, collate_prompts
from pipeline.models.checkpoint import load_policy
from pipeline.models.float32 import float32_product
from pipeline.models.processing import PromptProcessor
from pipeline.records import ProcessedPrompt, Prompt
from tests import worlds
from tests.worlds import learning

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STAGES, GROUP = (0, 1, 2, 3), 3


@pytest.mark.parametrize("shapes", [((5, 7, 64), (64, 33)), ((2, 3, 5, 64), (2, 3, 64, 9))], ids=["matrix", "batched"])
def test_a_bfloat16_product_sums_and_stays_in_float32(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(*shape, generator=generator).bfloat16() for shape in shapes)
    found = float32_product(one.cuda(), other.cuda())
    exact = one.double() @ other.double()
    assert found.dtype == torch.float32
    assert float((found.cpu().double() - exact).norm() / exact.norm()) < 1e-6


@pytest.fixture(scope="module")
def rows(demo_data: Path) -> list[Prompt]:
    table = PromptTable(demo_data / "train.parquet")
    found = [row for row in table.read([info.id for info in table.infos()][:24]) if isinstance(row, Prompt)]
    assert len({row.task for row in found}) > 3
    return found


@torch.no_grad()
def _sampled(
    checkpoint: Path, rows: Sequence[Prompt], device: str, dtype: Dtype, temperature: float = 1.0
) -> tuple[list[Sample], np.ndarray[Any, Any]]:
    """Samples for all rows, and the logprobs that a forward pass over them gives."""
    policy = load_policy(checkpoint, dtype=dtype, trust_remote_code=False).to(device).eval()
    processor = PromptProcessor(
        path=checkpoint,
        model=policy.decoder.model,
        limits=MediaLimits(),
        max_prompt_tokens=512,
        trust_remote_code=False,
    )
    processed: list[ProcessedPrompt] = [processor(row) for row in rows]
    prompts = collate_prompts(processed, pad_id=0).to(torch.device(device))
    samples = generate(
        policy,
        prompts,
        group_size=GROUP,
        seeds=[sample_seed(0, 0, row.id, index) for row in rows for index in range(GROUP)],
        temperature=temperature,
        max_new_tokens=12,
        end_ids=range(20, 1024, 7),
    )
    ids = [sample.token_ids for sample in samples]
    groups = [ids[start : start + GROUP] for start in range(0, len(ids), GROUP)]
    logprobs = policy(prompts, collate_completions(groups, pad_id=0).to(torch.device(device)), 1.0, False)[0]
    return samples, logprobs.cpu().numpy()


def test_a_gpu_samples_what_the_cpu_does_in_float32(tiny_checkpoint: Path, rows: list[Prompt]) -> None:
    (here, scored_here), (there, scored_there) = (
        _sampled(tiny_checkpoint, rows, device, Dtype.FLOAT32) for device in ("cpu", "cuda")
    )
    assert [each.token_ids.tolist() for each in there] == [each.token_ids.tolist() for each in here]
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(other.behaviour_logprobs, one.behaviour_logprobs, atol=1e-3)
    # Convolutions of the towers round to TensorFloat-32 there, which both copies of the policy see.
    np.testing.assert_allclose(scored_there, scored_here, atol=1e-3)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_rollout_and_trainer_agree_on_a_gpu(tiny_checkpoint: Path, rows: list[Prompt], dtype: Dtype) -> None:
    samples, scored = _sampled(tiny_checkpoint, rows, "cuda", dtype)
    apart = [
        np.abs(sample.behaviour_logprobs - logprobs[: len(sample.token_ids)]).mean()
        for sample, logprobs in zip(samples, scored, strict=True)
    ]
    assert max(apart) < (1e-4 if dtype is Dtype.FLOAT32 else 0.02)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_world_over_nccl_learns_what_one_over_gloo_does(tmp_path: Path, dtype: Dtype) -> None:
    ends: list[dict[str, Any]] = []
    for device in (Device.CPU, Device.CUDA):
        root = str(tmp_path / device)
        written = worlds.run(learning.written_at_all_stages, 1, root, STAGES, dtype, device=device)[0]
        files = {stage: TensorFiles(Folder(f"{root}/{stage}/whole"), names) for stage, (names, *_) in written.items()}
        names = ("first/weight", "scale/weight", "second/weight", "second/exp_avg_sq")
        ends.append({f"{stage}: {name}": each.read(name) for stage, each in files.items() for name in names})
    here, there = ends
    assert len(here) == 4 * len(STAGES)
    for name, tensor in here.items():
        np.testing.assert_allclose(there[name], tensor, atol=1e-5 if dtype is Dtype.FLOAT32 else 0.02, err_msg=name)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_gpu_goes_on_from_a_checkpoint_to_the_bit(tmp_path: Path, dtype: Dtype) -> None:
    written = worlds.run(learning.written_at_all_stages, 1, str(tmp_path), STAGES, dtype, device=Device.CUDA)[0]
    jobs = [
        (f"{tmp_path}/{stage}", names, schedule, stage, dtype, f"{tmp_path}/{stage}-again")
        for stage, (names, schedule, _) in written.items()
    ]
    worlds.run(learning.resumed_from_all, 1, jobs, device=Device.CUDA)
    for stage, (names, *_) in written.items():
        once, again = (
            learning.contents(Folder(f"{tmp_path}/{folder}/whole"), names) for folder in (stage, f"{stage}-again")
        )
        assert once and once == again, stage

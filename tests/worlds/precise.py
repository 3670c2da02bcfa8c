"""Engines in bfloat16 on real worlds: what their scalar heads and their sums of gradients keep of float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actors.engine import state
from actors.engine.engine import Engine
from actors.engine.files import Folder
from pipeline.config import Dtype, Sharded, Trained
from pipeline.models.batch import CompletionBatch, PromptBatch, collate_completions, collate_prompts
from pipeline.models.checkpoint import load_reward_model, save_checkpoint
from pipeline.models.float32 import keep_masters
from pipeline.models.forward import ScalarHead
from pipeline.records import ProcessedPrompt
from tests import worlds
from tests.worlds import learning

NUM_SCORES = 4096
NUM_PASSES = 64


class Scorer(nn.Module):
    """A head on a small body; neither two ranks nor an alignment divide their sizes."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(5, 7, bias=False)
        self.head = ScalarHead(7)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(rows.to(self.body.weight.dtype))))


def resumed(root: str, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Any]:
    """Goes on at one stage from another's checkpoint, for `pairs` of them.

    Returns by (stage that wrote, stage that read): whether what was loaded, and where it led to, is equal to the bit;
    scores after loading, and those of the engine that wrote.
    """
    written: dict[int, Any] = {}
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(9))
    for stage in {source for source, _ in pairs}:
        engine = learning.make(stage, Dtype.BFLOAT16, module=Scorer())
        learning.train(engine, range(learning.NUM_STEPS))
        names, schedule = learning.save(engine, Folder(root) / f"{stage}/half")
        scores = engine(rows).tolist()
        learning.train(engine, range(learning.NUM_STEPS, 2 * learning.NUM_STEPS))
        learning.save(engine, Folder(root) / f"{stage}/whole")
        written[stage] = names, schedule, scores
    found: dict[tuple[int, int], Any] = {}
    for source, stage in pairs:
        names, schedule, scores = written[source]
        engine, again = learning.make(stage, Dtype.BFLOAT16, module=Scorer(1)), Folder(root) / f"{source}-{stage}"
        engine.load(Folder(root) / f"{source}/half", names, schedule)
        loaded = engine(rows).tolist()
        learning.save(engine, again / "half")
        learning.train(engine, range(learning.NUM_STEPS, 2 * learning.NUM_STEPS))
        learning.save(engine, again / "whole")
        is_equal = [
            learning.contents(Folder(root) / f"{source}/{moment}", names) == learning.contents(again / moment, names)
            for moment in ("half", "whole")
        ]
        found[source, stage] = (*is_equal, loaded, scores)
    return found


def first_states(stages: Sequence[int]) -> dict[int, dict[str, tuple[float, bool]]]:
    """Before any step: by stage and parameter the steps counted, and whether its master is the weight it began with."""
    found: dict[int, dict[str, tuple[float, bool]]] = {}
    for stage in stages:
        engine, begun = learning.make(stage, Dtype.BFLOAT16, module=Scorer()), dict(Scorer().named_parameters())
        inner = cast(Any, engine)._engine
        found[stage] = {}
        for fragment in state.fragments(inner):
            steps = (inner.basic_optimizer.state.get(fragment.flat) or {}).get("step", 0.0)
            expected = begun[fragment.name].detach()
            expected = expected if fragment.name.startswith("head.") else expected.bfloat16().float()
            found[stage][fragment.name] = (float(steps), torch.equal(state.weight(inner, fragment), expected))
    return found


def sums(stages: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Many passes of one step: by stage the largest relative error of a parameter's gradient, and of a sum in bfloat16.

    Both against the same passes' gradients summed in float64.
    """
    found: dict[int, tuple[float, float]] = {}
    world = worlds.here()
    for stage in stages:
        # The first step's first moment is (1 - beta) of the gradient, which nothing clips.
        settings = Trained(zero_stage=stage, learning_rate=1e-3, betas=(0.5, 0.9), max_grad_norm=1e9)
        engine = Engine(Scorer(), world=world, settings=settings, dtype=Dtype.BFLOAT16)
        for index in range(NUM_PASSES):
            engine.train(partial(_pass, engine, index, world.rank), last=index == NUM_PASSES - 1)
        inner = cast(Any, engine)._engine
        exact, rounded = _sums_of_passes(world.size)
        errors = [_relative_error(2 * _moment(inner, each), exact[each.name]) for each in state.fragments(inner)]
        found[stage] = (max(errors), max(_relative_error(rounded[name], exact[name]) for name in exact))
    return found


def _pass(module: Any, index: int, rank: int) -> Tensor:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(100 * rank + index)) + 1.0
    return module(rows).sum() / 8


def _moment(engine: Any, fragment: state.Fragment) -> Tensor:
    whole = torch.zeros(fragment.shape).view(-1)
    moment = engine.basic_optimizer.state[fragment.flat]["exp_avg"]
    whole[fragment.first : fragment.first + fragment.size] = fragment.of(moment)
    if torch.distributed.get_world_size() > 1 and engine.zero_optimization_stage() > 0:
        torch.distributed.all_reduce(whole)
    return whole.view(fragment.shape)


def _sums_of_passes(num_ranks: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of all ranks' passes, without an engine, summed in float64 and in bfloat16."""
    module = Scorer()
    keep_masters(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.bfloat16()
    exact = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in module.named_parameters()}
    rounded = {name: torch.zeros(p.shape, dtype=torch.bfloat16) for name, p in module.named_parameters()}
    for rank in range(num_ranks):
        for index in range(NUM_PASSES):
            module.zero_grad()
            _pass(module, index, rank).backward()
            for name, parameter in module.named_parameters():
                assert parameter.grad is not None
                exact[name] += parameter.grad.double()
                rounded[name] += parameter.grad
    return exact, rounded


def _relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@dataclass(frozen=True)
class Scored:
    """Scores of a trained reward model and of its export, and the weights of its head.

    num_distinct, num_distinct_bfloat16: values among the scores, and among the same in bfloat16. head, sent: as
    gathered for an export, and for other copies; on rank 0.
    """

    num_distinct: int
    num_distinct_bfloat16: int
    scores: NDArray[np.float32]
    reloaded: NDArray[np.float32]
    head: dict[str, NDArray[Any]]
    sent: dict[str, NDArray[Any]]


def reward_models(checkpoint: str, root: str, stages: Sequence[int]) -> dict[int, Scored]:
    """Trains a reward model at each stage, scores many completions, exports it, and scores them with the export."""
    batch = _completions()
    found: dict[int, Scored] = {}
    world = worlds.here()
    for stage in stages:
        torch.manual_seed(0)
        module = load_reward_model(Path(checkpoint), dtype=Dtype.BFLOAT16, trust_remote_code=False)
        settings = Trained(zero_stage=stage, learning_rate=1e-3)
        engine = Engine(module, world=world, settings=settings, dtype=Dtype.BFLOAT16)
        few = CompletionBatch(batch[1].token_ids[:4], batch[1].mask[:4], batch[1].owner[:4])
        engine.train(lambda engine=engine, few=few: engine(batch[0], few).sum() / 8, last=True)
        with torch.no_grad():
            scores = engine(*batch)
        target, gathered, sent = Path(root) / str(stage), engine.gather(), engine.gather(trainable_only=True)
        if world.rank == 0:
            save_checkpoint(target, module=engine.module, state=gathered, source=Path(checkpoint))
        torch.distributed.barrier()
        again = load_reward_model(target, dtype=Dtype.BFLOAT16, trust_remote_code=False)
        scorer = Engine(again, world=world, settings=Sharded(zero_stage=stage and 3), dtype=Dtype.BFLOAT16)
        with torch.no_grad():
            reloaded = scorer(*batch)
        found[stage] = Scored(
            num_distinct=len(scores.unique()),
            num_distinct_bfloat16=len(scores.bfloat16().unique()),
            scores=scores.numpy(),
            reloaded=reloaded.numpy(),
            head={name: array for name, array in gathered.items() if name.startswith("head.")},
            sent={name: array for name, array in sent.items() if name.startswith("head.")},
        )
    return found


def _completions() -> tuple[PromptBatch, CompletionBatch]:
    """A prompt with many completions of two tokens."""
    ids = np.arange(40, 46)
    prompt = ProcessedPrompt("0", ids, np.broadcast_to(np.arange(6), (3, 6)).copy(), ())
    # 64 x 64 pairs: each completion is another one.
    pairs = [np.array([50 + first, 50 + second]) for first in range(64) for second in range(64)]
    return collate_prompts([prompt], pad_id=0), collate_completions([pairs], pad_id=0)


def all_of_it(
    checkpoint: str, root: str, stages: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> dict[str, dict[Any, Any]]:
    """What the tests look at, from one world."""
    return {
        "first": first_states(stages),
        "sums": sums(stages),
        "resumed": resumed(f"{root}/resumed", pairs),
        "reward": reward_models(checkpoint, f"{root}/reward", stages),
    }

"""The fusion model as RLlib's modules: shapes, dueling, targets, what runners are sent, and items that are seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn.dqn_learner import QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS
from ray.rllib.algorithms.sac.sac_learner import ACTION_LOG_PROBS
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config.fusion import EncoderSettings, FusionSettings, Modality
from pipeline.decisions.environment import HISTORY, DecisionEnv, Session
from pipeline.decisions.modules import FusionPolicyModule, FusionQModule, FusionSACModule, inputs_of
from pipeline.models.fusion.model import FusionModel
from tests.decisions.tables import WIDTH, small_table

FUSION = FusionSettings(
    modalities=(Modality.TEXT, Modality.AUDIO),
    hidden_size=8,
    num_heads=2,
    encoders={
        Modality.TEXT: EncoderSettings(width=WIDTH, num_heads=2),
        Modality.AUDIO: EncoderSettings(width=WIDTH, num_heads=2),
    },
)
MODEL: dict[str, Any] = {"fusion": FUSION.model_dump(mode="json"), "cached": True}
SETTINGS: dict[str, tuple[type, dict[str, Any]]] = {
    "policy": (FusionPolicyModule, {}),
    "q": (FusionQModule, {"dueling": True, "double_q": True, "epsilon": 0.0}),
    "sac": (FusionSACModule, {"twin_q": True}),
}


def spec(kind: str, environment: DecisionEnv, **further: Any) -> RLModuleSpec:
    """A module for an environment's spaces."""
    module, own = SETTINGS[kind]
    return RLModuleSpec(
        module_class=module,
        observation_space=environment.observation_space,
        action_space=environment.action_space,
        model_config=MODEL | own | further,
    )


def _batch(environment: DecisionEnv, num: int = 5) -> dict[str, Any]:
    rows = [environment.reset(seed=0 if row == 0 else None)[0] for row in range(num)]
    observations = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
    return {Columns.OBS: observations, Columns.NEXT_OBS: observations}


def _built(kind: str, *, session: Session | None = None, **further: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    environment = DecisionEnv(small_table(), session=session)
    return spec(kind, environment, **further).build(), _batch(environment)


@pytest.mark.parametrize("session", [Session(), Session(length=2), Session(question_cost=0.1)])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_module_gives_each_action_a_number(kind: str, session: Session) -> None:
    module, batch = _built(kind, session=session)
    output = module.forward_inference(batch)
    if kind == "q":
        assert output[Columns.ACTIONS].shape == (5,)
    else:
        assert output[Columns.ACTION_DIST_INPUTS].shape == (5, 3 + session.asks)


def test_the_value_is_the_same_from_observations_and_from_embeddings() -> None:
    module, batch = _built("policy")
    output = module.forward_train(batch)
    assert output[Columns.ACTION_DIST_INPUTS].shape == (5, 3)
    from_embeddings = module.compute_values(batch, embeddings=output[Columns.EMBEDDINGS])
    assert torch.equal(module.compute_values(batch), from_embeddings) and from_embeddings.shape == (5,)


def test_dueling_q_values_are_a_value_and_centred_advantages() -> None:
    module, batch = _built("q")
    embedding = module.encoder(batch)["encoder_out"]
    advantages = module.af(embedding)
    expected = module.vf(embedding) + advantages - advantages.mean(1, keepdim=True)
    assert torch.allclose(module.compute_q_values(batch)[QF_PREDS], expected, atol=1e-6)
    plain, _ = _built("q", dueling=False)
    assert not hasattr(plain, "vf")


def test_the_target_network_stays_where_it_was() -> None:
    module, batch = _built("q")
    module.make_target_networks()
    before = module.forward_train(batch)
    # In a batch with the other observations a row is added up in another order, on some processors.
    assert torch.allclose(before[QF_NEXT_PREDS], before[QF_TARGET_NEXT_PREDS], atol=1e-6)
    with torch.no_grad():
        module.af.bias += torch.arange(3.0)
    after = module.forward_train(batch)
    assert torch.equal(after[QF_TARGET_NEXT_PREDS], before[QF_TARGET_NEXT_PREDS])
    assert not torch.allclose(after[QF_NEXT_PREDS], before[QF_NEXT_PREDS])


def test_the_logarithm_of_an_action_that_is_never_taken_is_finite() -> None:
    module, batch = _built("sac")
    module.make_target_networks()
    with torch.no_grad():
        module.pi.bias[:] = torch.tensor([500.0, 0.0, 0.0])
    assert bool(torch.isfinite(module.forward_train(batch)[ACTION_LOG_PROBS]).all())


def test_features_of_a_cache_need_no_encoders() -> None:
    module, _ = _built("policy")
    assert not [name for name in module.state_dict() if ".encoders." in name]


def test_masks_and_presence_are_taken_above_a_half_and_history_is_no_input() -> None:
    given = {"text_mask": torch.tensor([[0.0, 1.0]]), "present": torch.tensor([[1.0, 0.0]]), HISTORY: torch.ones(1, 3)}
    found: dict[str, Tensor] = inputs_of(given)
    assert found["text_mask"].tolist() == [[False, True]] and found["present"].tolist() == [[True, False]]
    assert HISTORY not in found


def test_what_was_done_in_a_session_changes_the_numbers() -> None:
    module, batch = _built("policy", session=Session(length=2))
    before = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    batch[Columns.OBS][HISTORY][:, 0] = 1.0
    assert not torch.allclose(module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS], before)


def test_items_are_scored_by_what_they_show(tmp_path: Path) -> None:
    path = tmp_path / "items.safetensors"
    table = small_table(num=3)
    table.save(path)
    items = {"fusion": MODEL["fusion"], "cached": True, "path": str(path)}
    module, batch = _built("policy", items=items)
    with torch.no_grad():
        embedding = module.encoder(batch)["encoder_out"]
        keys = module.pi.model({name: torch.from_numpy(each) for name, each in table.inputs.items()}).embedding
        expected = module.pi.query(embedding) @ keys.T / 8**0.5 + module.pi.plain(embedding)
    assert torch.allclose(module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS], expected, atol=1e-6)
    # Other pictures, other numbers: the items themselves are looked at.
    replace(table, inputs={**table.inputs, "text_features": -table.inputs["text_features"]}).save(path)
    other, _ = _built("policy", items=items)
    assert not torch.allclose(other.forward_inference(batch)[Columns.ACTION_DIST_INPUTS], expected, atol=1e-3)


def test_a_question_has_a_number_though_it_is_no_item(tmp_path: Path) -> None:
    small_table(num=3).save(tmp_path / "items.safetensors")
    items = {"fusion": MODEL["fusion"], "cached": True, "path": str(tmp_path / "items.safetensors")}
    module, batch = _built("q", session=Session(question_cost=0.1), items=items)
    assert module.compute_q_values(batch)[QF_PREDS].shape == (5, 4)


def test_a_policy_can_start_with_the_logits_of_a_model_that_learned_before(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = FusionModel(FUSION, 3)
    path = tmp_path / "start.safetensors"
    save_file({name: each for name, each in model.state_dict().items() if not name.startswith("encoders")}, path)
    for kind in ("policy", "sac"):
        module, batch = _built(kind, start=str(path))
        with torch.no_grad():
            expected = model.eval()(inputs_of(batch[Columns.OBS])).logits
        assert torch.allclose(module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS], expected, atol=1e-6)
    # What was done and the question are new to it: neither changes a logit, nor has one.
    module, batch = _built("policy", session=Session(question_cost=0.1), start=str(path))
    before = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    batch[Columns.OBS][HISTORY][:, 0] = 1.0
    assert torch.equal(module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS], before)
    q, batch = _built("q", start=str(path))
    assert torch.allclose(q.encoder.fused(batch[Columns.OBS]).embedding, model(inputs_of(batch[Columns.OBS])).embedding)

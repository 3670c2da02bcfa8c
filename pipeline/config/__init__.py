"""The recipe: one frozen pydantic model a section, read from YAML and `section.field=value` overrides.

A job reads the whole recipe and uses its own section, so one file describes a run from data to report.
The docstring under a field is its documentation: `python -m jobs.<stage> --help` prints it.
An unknown key, a wrong type or a value out of bounds is a `ConfigError` that names the field, the value and the cure.
"""

from pipeline.config.algorithm import AdvantageEstimator, Algorithm, Kl, KlControl, KlEstimator, KlPlace
from pipeline.config.checkpoints import BestMode, Checkpoints
from pipeline.config.loading import describe, load_recipe
from pipeline.config.recipe import (
    Cluster,
    Data,
    Device,
    Dtype,
    MediaLimits,
    Model,
    Placement,
    Prepare,
    Recipe,
    Run,
    Sink,
)
from pipeline.config.rlhf import RewardName, Rlhf
from pipeline.config.sampling import Sampling
from pipeline.config.section import ConfigError, Section, section_of
from pipeline.config.stages import Evaluate, Preferences, RewardModel, Supervised
from pipeline.config.workers import Rollout, Sharded, Trained, Workers

__all__ = [
    "AdvantageEstimator",
    "Algorithm",
    "BestMode",
    "Checkpoints",
    "Cluster",
    "ConfigError",
    "Data",
    "Device",
    "Dtype",
    "Evaluate",
    "Kl",
    "KlControl",
    "KlEstimator",
    "KlPlace",
    "MediaLimits",
    "Model",
    "Placement",
    "Preferences",
    "Prepare",
    "Recipe",
    "RewardModel",
    "RewardName",
    "Rlhf",
    "Rollout",
    "Run",
    "Sampling",
    "Section",
    "Sharded",
    "Sink",
    "Supervised",
    "Trained",
    "Workers",
    "describe",
    "load_recipe",
    "section_of",
]

"""The recipe: one frozen pydantic model a section, read from YAML and `section.field=value` overrides.

A job reads the whole recipe and uses its own section, so one file describes a run from data to report.
The docstring under a field is its documentation: `python -m jobs.<stage> --help` prints it.
An unknown key, a wrong type or a value out of bounds is a `ConfigError` that names the field, the value and the cure.
"""

from pipeline.config.algorithm import (
    AdvantageEstimator,
    Aggregation,
    Algorithm,
    DynamicSampling,
    ImportanceCorrection,
    Kl,
    KlControl,
    KlEstimator,
    KlPlace,
    OffPolicy,
    PolicyLossName,
)
from pipeline.config.checkpoints import BestMode, Checkpoints, Exported
from pipeline.config.data import Access, Data, Dataset, MediaLimits, RowOrder
from pipeline.config.documentation import describe, describe_steps
from pipeline.config.loading import absolute, check_once, load_recipe
from pipeline.config.parts import FROZEN, TOWERS, FrozenPart, LoopParts, Lora, Part, PartMode, PartName, Parts
from pipeline.config.paths import Base
from pipeline.config.prepare import Answers, Form, Ids, Leaks, MediaAs, Prepare, Source, SplitBy, Splitting
from pipeline.config.recipe import (
    Cluster,
    Deadlines,
    Device,
    Dtype,
    Model,
    Placement,
    Recipe,
    Resume,
    Run,
    Sink,
)
from pipeline.config.rlhf import Parity, RewardName, RewardWeight, Rlhf
from pipeline.config.sampling import Sampling
from pipeline.config.section import ConfigError, Section, section_of
from pipeline.config.stages import Evaluate, Preferences, RewardModel, Supervised
from pipeline.config.validation import TASK_MEASURES, VALIDATION, Measure, Validation
from pipeline.config.workers import Encoder, Learner, Pooled, Rollout, Sharded, Trained, Workers

__all__ = [
    "FROZEN",
    "TASK_MEASURES",
    "TOWERS",
    "VALIDATION",
    "Access",
    "AdvantageEstimator",
    "Aggregation",
    "Algorithm",
    "Answers",
    "Base",
    "BestMode",
    "Checkpoints",
    "Cluster",
    "ConfigError",
    "Data",
    "Dataset",
    "Deadlines",
    "Device",
    "Dtype",
    "DynamicSampling",
    "Encoder",
    "Evaluate",
    "Exported",
    "Form",
    "FrozenPart",
    "Ids",
    "ImportanceCorrection",
    "Kl",
    "KlControl",
    "KlEstimator",
    "KlPlace",
    "Leaks",
    "Learner",
    "LoopParts",
    "Lora",
    "Measure",
    "MediaAs",
    "MediaLimits",
    "Model",
    "OffPolicy",
    "Parity",
    "Part",
    "PartMode",
    "PartName",
    "Parts",
    "Placement",
    "PolicyLossName",
    "Pooled",
    "Preferences",
    "Prepare",
    "Recipe",
    "Resume",
    "RewardModel",
    "RewardName",
    "RewardWeight",
    "Rlhf",
    "Rollout",
    "RowOrder",
    "Run",
    "Sampling",
    "Section",
    "Sharded",
    "Sink",
    "Source",
    "SplitBy",
    "Splitting",
    "Supervised",
    "Trained",
    "Validation",
    "Workers",
    "absolute",
    "check_once",
    "describe",
    "describe_steps",
    "load_recipe",
    "section_of",
]

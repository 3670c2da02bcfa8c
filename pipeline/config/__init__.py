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
    PartNormalisation,
    PolicyLossName,
)
from pipeline.config.checkpoints import BestMode, Checkpoints, Exported
from pipeline.config.data import Access, Data, Dataset, MediaLimits, RowOrder
from pipeline.config.documentation import describe, describe_steps, meanings
from pipeline.config.loading import absolute, check_once, load_recipe
from pipeline.config.parts import FROZEN, TOWERS, FrozenPart, LoopParts, Lora, Part, PartMode, PartName, Parts
from pipeline.config.paths import Base
from pipeline.config.preference import PreferenceLearning, PreferenceLoss
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
from pipeline.config.rewards import (
    Adapter,
    FunctionReward,
    Grader,
    JudgeReward,
    Judging,
    MediaForm,
    Outside,
    Reading,
    Sending,
    ServerReward,
)
from pipeline.config.rlhf import Parity, RewardName, RewardWeight, Rlhf
from pipeline.config.sampling import Sampling
from pipeline.config.section import ConfigError, Section, section_of
from pipeline.config.stages import Distill, Evaluate, Export, Preferences, RewardModel, Supervised
from pipeline.config.validation import TASK_MEASURES, VALIDATION, Measure, Validation
from pipeline.config.workers import Encoder, Learner, Pooled, Rollout, Sharded, Trained, Workers

__all__ = [
    "FROZEN",
    "TASK_MEASURES",
    "TOWERS",
    "VALIDATION",
    "Access",
    "Adapter",
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
    "Distill",
    "Dtype",
    "DynamicSampling",
    "Encoder",
    "Evaluate",
    "Export",
    "Exported",
    "Form",
    "FrozenPart",
    "FunctionReward",
    "Grader",
    "Ids",
    "ImportanceCorrection",
    "JudgeReward",
    "Judging",
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
    "MediaForm",
    "MediaLimits",
    "Model",
    "OffPolicy",
    "Outside",
    "Parity",
    "Part",
    "PartMode",
    "PartName",
    "PartNormalisation",
    "Parts",
    "Placement",
    "PolicyLossName",
    "Pooled",
    "PreferenceLearning",
    "PreferenceLoss",
    "Preferences",
    "Prepare",
    "Reading",
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
    "Sending",
    "ServerReward",
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
    "meanings",
    "section_of",
]

"""Any dual encoder by its directory."""

from __future__ import annotations

from pathlib import Path

from pipeline.models.dual_encoder.joint import JointEncoder
from pipeline.models.dual_encoder.pretrained import PretrainedDualEncoder
from pipeline.models.dual_encoder.towers import SETTINGS_FILE, DualEncoder


def load_joint_encoder(path: Path | str) -> JointEncoder:
    """What `jobs.pretrain` wrote, or a Hugging Face checkpoint of a dual encoder, in evaluation.

    Raises:
        ConfigError: it is neither.
    """
    is_ours = (Path(path) / SETTINGS_FILE).is_file()
    return (DualEncoder.load(Path(path)) if is_ours else PretrainedDualEncoder(path)).eval()

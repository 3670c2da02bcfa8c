"""Joint embedding: text, pictures, sounds and videos as points of one sphere, where what belongs together is near.

Sample -> `batch` (arrays) -> a tower a modality -> embeddings of length one. Towers are built here on stock encoders
(`towers`), or are those of a Hugging Face checkpoint of a dual encoder (`pretrained`). `index` finds what is near.
"""

from pipeline.models.dual_encoder.index import Index, IndexInfo
from pipeline.models.dual_encoder.joint import JointEncoder
from pipeline.models.dual_encoder.loading import load_joint_encoder
from pipeline.models.dual_encoder.pretrained import PretrainedDualEncoder
from pipeline.models.dual_encoder.towers import DualEncoder

__all__ = ["DualEncoder", "Index", "IndexInfo", "JointEncoder", "PretrainedDualEncoder", "load_joint_encoder"]

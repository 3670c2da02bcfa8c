"""Models that fuse text, pictures, sounds, videos and numbers into one embedding, logits, and weights of modalities.

Sample (what one decision sees) -> Preprocessor (arrays of fixed shapes, and which modalities are there)
-> encoders (stock Hugging Face ones, a modality each: tokens) -> a fusion (seven kinds) -> FusionOutput.
"""

from pipeline.models.fusion.model import FusionModel
from pipeline.models.fusion.outputs import FusionOutput
from pipeline.models.fusion.samples import PRESENT, Inputs, Modality, Preprocessor, Sample, sample_of

__all__ = ["PRESENT", "FusionModel", "FusionOutput", "Inputs", "Modality", "Preprocessor", "Sample", "sample_of"]

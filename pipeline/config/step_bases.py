"""What the steps of preprocessing share."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config.section import Section


class StepSection(Section):
    """Base of all steps."""

    @model_validator(mode="after")
    def _check_order(self) -> StepSection:
        for low in type(self).model_fields:
            high = low.replace("min_", "max_", 1)
            least, most = getattr(self, low), getattr(self, high, None)
            if low.startswith("min_") and least is not None and most is not None and least > most:
                raise ValueError(f"{low}={least} is above {high}={most}; lower the one or raise the other")
        return self

    def need_one_of(self, *names: str) -> None:
        """Raises ValueError where all fields `names` are null: such a step would do nothing."""
        if all(getattr(self, name) is None for name in names):
            raise ValueError(f"nothing is asked for; set one of {', '.join(names)}")


class Augmentation(StepSection):
    """Base of steps that change a medium at random. They run on the training split only."""

    probability: float = Field(default=0.5, gt=0, le=1)
    """Share of the media that are changed."""


class Picture(StepSection):
    """Base of steps on pictures."""

    videos: bool = False
    """Whether the frames of videos are treated likewise, all frames of a video with the same draws."""

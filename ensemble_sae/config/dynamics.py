"""How one member is trained over time: keys of `[train]`, and axes of a grid."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ensemble_sae.config.strict import Refused, Strict

MOST = 2**53  # a float64 counts so far
Count = Annotated[int, Field(ge=1, le=MOST)]
Steps = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Shape = Literal["constant", "linear", "cosine"]


class Dynamics(Strict):
    """Each key may be set for all members in `[train]` and be an axis of a grid."""

    lr: Positive = Field(1e-3, description="the optimiser's learning rate")
    grad_clip: Positive | None = Field(None, description="largest gradient norm of a member")
    lr_warmup: Steps = Field(0, description="steps until lr is whole")
    lr_schedule: Shape = Field("constant", description="how lr falls after the warm-up")
    lr_end: Share = Field(0.0, description="share of lr that is left at the end")
    l1_warmup: Steps = Field(0, description="steps until the penalty is whole")
    l1_schedule: Shape = Field("constant", description="how the penalty moves after the warm-up")
    l1_end: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="share of the penalty that is left at the end"
    )
    schedule_steps: Count | None = Field(
        None, description="the step at which schedules end; by default the last one"
    )
    target_l0: Positive | None = Field(None, description="L0 that the penalty is moved towards")
    target_rate: Positive = Field(0.01, description="largest change of log penalty per step")
    remove_parallel: bool = Field(
        False, description="take out the part of the decoder's gradient that changes norms"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="decay of the averaged parameters that are evaluated; 0 for none"
    )
    dead_after: Count = Field(1000, description="steps without firing until a feature is dead")
    resample: Literal["none", "loss", "random"] = Field(
        "none", description="where dead features start again: badly explained rows, or anywhere"
    )
    resample_every: Count = Field(25_000, description="steps between resamplings")
    resample_until: Steps = Field(100_000, description="the last step of a resampling")
    resample_power: Annotated[float, Field(gt=0, le=8)] = Field(
        2.0, description="rows are drawn with a probability ~ loss ** power"
    )
    resample_scale: Positive = Field(
        0.2, description="norm of a new encoder row, in the mean norm of the alive ones"
    )
    freeze_every: Steps = Field(0, description="steps between looks for stable features; 0: never")
    freeze_from: Steps = Field(0, description="no feature is frozen before this step")
    freeze_at: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="cosine between two looks from which on a feature is stable"
    )

    @model_validator(mode="after")
    def _no_contradictions(self) -> Any:
        if self.freeze_every and self.resample != "none" and self.freeze_from < self.resample_until:
            raise Refused(
                "Features cannot be frozen while others are still resampled.",
                where="freeze_from",
                found=f"freeze_from = {self.freeze_from}, resample_until = {self.resample_until}",
                allowed="freeze_from >= resample_until",
                next_step='begin to freeze later, resample no longer, or set resample = "none"',
            )
        return self

    @property
    def over_time(self) -> bool:
        """Whether something depends on where the training ends."""
        return self.schedule_steps is None and {self.lr_schedule, self.l1_schedule} != {"constant"}


DYNAMICS = frozenset(Dynamics.model_fields)

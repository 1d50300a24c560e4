"""The files of `configs/profiles/`: one for each kind of machine."""

from typing import Annotated, Literal

from pydantic import Field

from deployments.settings.base import Frozen

ProfileName = Literal["rtx5080", "cpu-demo"]
ResidencyMode = Literal["cold", "warm"]


class Place(Frozen):
    """What a model's replica asks of Ray; over one half, so that Ray itself never places two."""

    resource: Literal["GPU", "node:__internal_head__"]
    amount: Annotated[float, Field(gt=0.5, le=1)]

    @property
    def is_gpu(self) -> bool:
        """Whether the memory that models share is a card's; else it is the host's."""
        return self.resource == "GPU"


class ProfileFile(Frozen):
    """One file of `configs/profiles/`."""

    default_model: str
    place: Place
    standby: Literal[True, False, "auto"]
    residency: ResidencyMode
    max_sleepers: Annotated[int, Field(ge=1)]

"""What settings are made of: numbers with bounds, and sections that refuse keys they do not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WrapValidator

from elpo.by_name import BY_NAME

# Strict: neither `true` nor "3" nor 3.0 is an integer here.
Positive = Annotated[int, Field(gt=0, strict=True)]
Count = Annotated[int, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, strict=True)]
Decay = Annotated[float, Field(ge=0, lt=1, strict=True)]
Flag = Annotated[bool, Field(strict=True)]


def _or_by_name(value: Any, known: Callable[[Any], Any]) -> Any:
    """A name of the list, or `module:name`."""
    return value if isinstance(value, str) and BY_NAME.fullmatch(value) else known(value)


OrByName = WrapValidator(_or_by_name)
AsWritten = PlainSerializer(lambda value: value)


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

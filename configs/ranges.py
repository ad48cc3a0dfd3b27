"""Number types of settings: a value out of its range is refused when it is parsed, and by `check_settings`."""

import math
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    # To a type checker they are the plain numbers that they hold.
    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    TwoOrMore: TypeAlias = int
    DocumentBytes: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    FiniteNonNegative: TypeAlias = float
    ClosedUnitInterval: TypeAlias = float
    HalfOpenUnitInterval: TypeAlias = float
else:
    from jsonargparse.typing import (
        ClosedUnitInterval,
        NonNegativeFloat,
        NonNegativeInt,
        PositiveFloat,
        PositiveInt,
        restricted_number_type,
    )

    FiniteNonNegative = restricted_number_type("FiniteNonNegative", float, [(">=", 0), ("<", math.inf)])
    HalfOpenUnitInterval = restricted_number_type("HalfOpenUnitInterval", float, [(">=", 0), ("<", 1)])
    TwoOrMore = restricted_number_type("TwoOrMore", int, (">=", 2))
    # Below that, most records would be split.
    DocumentBytes = restricted_number_type("DocumentBytes", int, (">=", 1024))

RANGES: dict[Any, str] = {
    PositiveInt: "a whole number of 1 or more",
    NonNegativeInt: "a whole number of 0 or more",
    TwoOrMore: "a whole number of 2 or more",
    DocumentBytes: "a whole number of 1024 or more",
    PositiveFloat: "a number above 0",
    NonNegativeFloat: "a number of 0 or more",
    FiniteNonNegative: "a finite number of 0 or more",
    ClosedUnitInterval: "a number from 0 to 1",
    HalfOpenUnitInterval: "a number from 0 to below 1",
}
"""What each type allows, in words."""

__all__ = [
    "RANGES",
    "ClosedUnitInterval",
    "DocumentBytes",
    "FiniteNonNegative",
    "HalfOpenUnitInterval",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "TwoOrMore",
]

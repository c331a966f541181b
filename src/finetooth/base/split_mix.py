"""SplitMix64 on tensors: even random bits from a key and a position, the same on every device.

(Steele, Lea, Flood 2014.) No generator plays a part, so there is no state that a resumed run would have to
restore.
"""

import torch


def signed(value: int) -> int:
    """A 64-bit number as int64 has it."""
    value %= 1 << 64
    return value - (1 << 64) if value >> 63 else value


# The stream of a key k has the values mix(k + 1·GOLDEN), mix(k + 2·GOLDEN), …
GOLDEN = signed(0x9E3779B97F4A7C15)
_FIRST_FACTOR = signed(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = signed(0x94D049BB133111EB)


def mix(values: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64, in place: int64 of any shape."""
    _fold(values, 30).mul_(_FIRST_FACTOR)
    _fold(values, 27).mul_(_SECOND_FACTOR)
    return _fold(values, 31)


def _fold(values: torch.Tensor, bits: int) -> torch.Tensor:
    """values ^= values >> bits, without the sign that int64 would shift in."""
    return values.bitwise_xor_((values >> bits).bitwise_and_((1 << (64 - bits)) - 1))

"""Numbers as people read them in reports."""

import math


def figure(value: float) -> str:
    """A measured value in four digits.

    >>> figure(0.0139171), figure(2701.4), figure(2e-05), figure(0.0), figure(float("inf"))
    ('0.01392', '2,701', '2e-05', '0', 'inf')
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    return f"{value:.4g}"


def count(value: float) -> str:
    """A number of things on an axis: 850, 12.5k, 3M.

    >>> count(850), count(12500), count(3e6), count(0)
    ('850', '12.5k', '3M', '0')
    """
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"{value / (size if unit != 'k' else 1e3):.4g}{unit}"
    return f"{value:,.0f}"


def in_words(number: int, what: str) -> str:
    """So many things.

    >>> in_words(1, "row"), in_words(2601, "document")
    ('1 row', '2,601 documents')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def share(value: float) -> str:
    """A share in percent.

    >>> share(0.9969), share(1), share(0.00012)
    ('99.7 %', '100.0 %', '0.0 %')
    """
    return f"{value:.1%}".replace("%", " %")


def duration(seconds: float) -> str:
    """How long something took.

    >>> duration(46.8), duration(125), duration(7300)
    ('47 s', '2 min 5 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

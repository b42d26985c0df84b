"""Numbers on the command line, as argparse reads them."""

from __future__ import annotations

import argparse

__all__ = ["positive", "positive_integer", "whole"]


def whole(text: str) -> int:
    """Return an integer that is not negative.

    Examples
    --------
    >>> whole("0")
    0
    """
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def positive_integer(text: str) -> int:
    """Return an integer above zero.

    Examples
    --------
    >>> positive_integer("3")
    3
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def positive(text: str) -> float:
    """Return a finite number above zero.

    Examples
    --------
    >>> positive("1e-3")
    0.001
    """
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
    return value

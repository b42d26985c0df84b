"""One wrong call, and what is said about it."""

from typing import NamedTuple


class Refusal(NamedTuple):
    call: str  # what a user would write; statements are allowed, the last one fails
    error: type  # the exception
    words: str  # part of the message: the argument that it names, and the fix

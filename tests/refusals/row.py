"""One wrong call, and what is said about it."""

from typing import NamedTuple


class Refusal(NamedTuple):
    call: str  # what a user would write; statements are allowed, the last one fails
    error: type  # the exception
    words: str  # part of the message: the argument that it names, and the fix


def alike(error, words, *calls, call="{}"):
    """Return the rows of calls that are refused alike; with each, what fills gaps of the words."""
    rows = [(row, ()) if isinstance(row, str) else (row[0], row[1:]) for row in calls]
    return [
        Refusal(call.replace("{}", own), error, words.format(*gaps) if gaps else words)
        for own, gaps in rows
    ]

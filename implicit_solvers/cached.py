"""Attributes that are computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from implicit_solvers.compiling import compiling

__all__ = ["cached_property"]

T = TypeVar("T")


class cached_property(Generic[T]):
    """``functools.cached_property`` that can be compiled.

    That takes a lock before Python 3.12, which Dynamo cannot trace.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[T]: ...

    @overload
    def __get__(self, instance: Any, owner: type) -> T: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = self.compute(instance)
        if not compiling():
            instance.__dict__[self.name] = value
        return value

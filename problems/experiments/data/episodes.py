"""Few-shot tasks, drawn from classes of examples by number: the same number, the same task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

__all__ = ["Episodes", "Tasks", "split_classes"]


class Tasks(NamedTuple):
    """A batch of few-shot tasks; in each, the images are in the order of their labels.

    Supports are ``(tasks, ways * shots, *image)``, and their labels int64 ``(tasks, ways * shots)``
    from 0 to ``ways - 1``; queries alike. In regression, ``y`` are targets of the inputs' dtype.

    Examples
    --------
    >>> Episodes(torch.rand(5, 3, 1, 28, 28), ways=2, shots=1, queries=2).batch([0]).query_y
    tensor([[0, 0, 1, 1]])
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor


@dataclass(frozen=True, eq=False)
class Episodes:
    """Few-shot tasks: tell a few classes apart, given a few labelled images of each.

    Task number i of a seed is always the same, in whatever order and batch it is asked for, so
    that an interrupted training can continue with the next number.

    ``images`` are ``(classes, instances, *image)``, or a tensor ``(instances, *image)`` for each
    class, where their numbers differ. A task has ``shots`` labelled images and ``queries`` others
    of each of ``ways`` classes; errors call the classes by ``names``.

    Examples
    --------
    >>> episodes = Episodes(torch.rand(20, 10, 1, 28, 28), ways=5, shots=1, queries=4)
    >>> tasks = episodes.batch(range(8))
    >>> tasks.support_x.shape, tasks.query_y.shape
    (torch.Size([8, 5, 1, 28, 28]), torch.Size([8, 20]))
    """

    images: Tensor | Sequence[Tensor]
    ways: int
    shots: int
    queries: int
    seed: int = 0
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_positive(ways=self.ways, shots=self.shots, queries=self.queries)
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative: pass 0 or more")
        classes = len(self.images)
        if self.ways > classes:
            raise ValueError(
                f"ways={self.ways} is more than the {classes} classes of images: "
                "lower ways or pass more classes"
            )
        if self.names is not None and len(self.names) != classes:
            raise ValueError(f"names has {len(self.names)} names for {classes} classes of images")
        counts = [len(instances) for instances in self.images]
        least = min(counts)
        if self.shots + self.queries > least:
            number = counts.index(least)
            if self.names is not None:
                subject = f"the class {self.names[number]} has {least} instances"
            elif len(set(counts)) > 1:
                subject = f"class {number} of images has {least} instances"
            else:
                subject = f"images has {least} instances of each class"
            raise ValueError(
                f"{subject}, fewer than shots + queries = {self.shots} + {self.queries}: "
                "lower these or pass more instances"
            )

    def batch(self, tasks: Sequence[int]) -> Tasks:
        """Return the tasks with these numbers, such as ``range(16 * step, 16 * (step + 1))``.

        Raises ``ValueError`` if there is no number, or a negative one.
        """
        require_task_numbers(tasks)
        drawn = torch.stack([self._draw(task) for task in tasks])
        y = torch.arange(self.ways, device=drawn.device)[:, None].expand(drawn.shape[:3])
        return Tasks(
            support_x=drawn[:, :, : self.shots].flatten(1, 2),
            support_y=y[:, :, : self.shots].flatten(1, 2),
            query_x=drawn[:, :, self.shots :].flatten(1, 2),
            query_y=y[:, :, self.shots :].flatten(1, 2),
        )

    def _draw(self, task: int) -> Tensor:
        """Return the images ``(ways, shots + queries, *image)`` of one task."""
        random = np.random.default_rng([self.seed, task])
        drawn = []
        for number in random.permutation(len(self.images))[: self.ways]:
            instances = self.images[int(number)]
            order = random.random(len(instances)).argsort()[: self.shots + self.queries]
            drawn.append(instances[torch.from_numpy(order)])
        return torch.stack(drawn)


def split_classes(
    class_count: int, seed: int = 0, train: float = 0.64, validation: float = 0.12
) -> tuple[Tensor, Tensor, Tensor]:
    """Split the classes at random into meta-train, meta-validation and meta-test.

    ``train`` and ``validation`` are fractions of the classes; returned are sorted class numbers.
    """
    sizes = [round(class_count * train), round(class_count * validation)]
    sizes.append(class_count - sum(sizes))
    if min(sizes) < 1:
        raise ValueError(
            f"class_count={class_count}, train={train}, validation={validation} make parts of "
            f"{sizes} classes: pass positive fractions with a sum below 1, or more classes"
        )
    order = torch.randperm(class_count, generator=Generator().manual_seed(seed))
    train_part, validation_part, test_part = torch.split(order, sizes)
    return train_part.sort().values, validation_part.sort().values, test_part.sort().values


def require_positive(**arguments: int) -> None:
    """Raise ``ValueError`` if an argument is below 1."""
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name}={value} is not positive: pass 1 or more")


def require_task_numbers(tasks: Sequence[int]) -> None:
    """Raise ``ValueError`` if there is no task number, or a negative one."""
    if len(tasks) == 0 or min(tasks) < 0:
        raise ValueError(f"tasks={tasks} is empty or has a negative number: pass 0 or more")

"""Labelled time series in files of the ``.ts`` format."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["LabelledSeries", "read_ts"]


class LabelledSeries(NamedTuple):
    """Series with classes.

    Parameters
    ----------
    series
        float64 arrays ``(length, channels)``.
    labels
        int64 ``(count,)``: positions in ``classes``.
    classes
        The classes' names, in the order of the file's header.
    """

    series: list[np.ndarray]
    labels: np.ndarray
    classes: tuple[str, ...]


def read_ts(path: Path) -> LabelledSeries:
    r"""Return the series in a ``.ts`` file with class labels and without time stamps.

    Lines that begin with ``#`` or ``%`` are comments, lines with ``@`` a header, which ``@data``
    ends. Every further line is a series: its channels, then its class, with colons in between;
    a channel is numbers with commas in between, ``?`` or ``NaN`` where one is missing.
    Source: Bagnall et al., "The UEA multivariate time series classification archive" (2018).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the header lacks ``@data`` or the classes, has time stamps, or a line is no such series.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "two.ts"
    ...     text = "@classLabel true up down\n@data\n1,2,3:0,0,0:up\n2,1:0,0:down\n"
    ...     _ = path.write_text(text, encoding="utf-8")
    ...     data = read_ts(path)
    >>> [series.shape for series in data.series], data.labels, data.classes
    ([(3, 2), (2, 2)], array([0, 1]), ('up', 'down'))
    """
    header: dict[str, list[str]] = {}
    series: list[np.ndarray] = []
    labels: list[int] = []
    classes: tuple[str, ...] = ()
    in_data = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text[0] in "#%":
            continue
        if in_data:
            one, label = _series(text, classes, f"line {number} of {path}")
            if series and one.shape[1] != series[0].shape[1]:
                raise ValueError(
                    f"line {number} of {path} has {one.shape[1]} channels, the first series "
                    f"{series[0].shape[1]}"
                )
            series.append(one)
            labels.append(label)
        elif text.lower() == "@data":
            classes, in_data = _classes(header, path), True
        elif text.startswith("@"):
            name, *values = text[1:].split()
            header[name.lower()] = values
        else:
            raise ValueError(f"line {number} of {path} comes before @data and is no header")
    if not series:
        raise ValueError(f"{path} holds no series: it has no line after @data, or no @data")
    return LabelledSeries(series, np.array(labels, dtype=np.int64), classes)


def _classes(header: dict[str, list[str]], path: Path) -> tuple[str, ...]:
    if header.get("timestamps", ["false"])[0].lower() != "false":
        raise ValueError(f"{path} has time stamps, which are not supported")
    labelled, *classes = header.get("classlabel", ["false"])
    if labelled.lower() != "true" or not classes:
        raise ValueError(f"{path} has no line '@classLabel true' with the names of classes")
    return tuple(classes)


def _series(text: str, classes: tuple[str, ...], where: str) -> tuple[np.ndarray, int]:
    *channels, label = text.split(":")
    if label.strip() not in classes:
        raise ValueError(f"{where} ends in {label.strip()[:40]!r}, which is none of {classes}")
    try:
        numbers = [
            [float("nan") if part.strip() == "?" else float(part) for part in channel.split(",")]
            for channel in channels
        ]
    except ValueError as error:
        raise ValueError(f"{where} is no series of numbers ({error})") from error
    lengths = {len(channel) for channel in numbers}
    if len(lengths) != 1:
        raise ValueError(f"{where} has channels of {sorted(lengths)} steps: they must be as many")
    return np.array(numbers).T, classes.index(label.strip())

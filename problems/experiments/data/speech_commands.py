"""Spoken words as spectral features: Google's speech commands, in a folder."""

from __future__ import annotations

import math
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from implicit_solvers.problems.experiments.data.sequences import Sequences, SequenceTask

__all__ = ["log_mel", "load_speech_commands", "read_wav"]

RATE = 16_000
WINDOW, HOP, BANDS = RATE // 40, RATE // 100, 32
FLOOR = 1e-6


def load_speech_commands(folder: Path, words: tuple[str, ...] | None = None) -> SequenceTask:
    """Return recordings of words of one second as 98 steps of 32 features.

    ``folder`` holds a folder of ``.wav`` files, of 16 bits at 16 kHz, for each word
    (``_background_noise_`` is left out). The parts are the data set's own, by speakers:
    ``validation_list.txt`` and ``testing_list.txt``; the training part is the rest. What is not
    among ``words`` is one class more, ``"unknown"``. Features are `log_mel`, standardized. Shorter
    recordings are filled with silence, longer ones cut. Source: Warden, "Speech commands" (2018).
    """
    lists = {
        part: set((folder / f"{part}_list.txt").read_text(encoding="utf-8").split())
        for part in ("validation", "testing")
    }
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("_"))
    if not found:
        raise FileNotFoundError(f"{folder} has no folder of a word with .wav files in it")
    classes = tuple(found) if words is None else words
    missing = sorted(set(classes) - set(found))
    if missing:
        raise ValueError(f"{folder} has no folders of the words {missing}: it has {found}")
    if words is not None and set(found) > set(words):
        classes = (*words, "unknown")
    parts: dict[str, tuple[list[Tensor], list[int]]] = {
        part: ([], []) for part in ("training", "validation", "testing")
    }
    for word in found:
        label = classes.index(word if word in classes else "unknown")
        for path in sorted((folder / word).glob("*.wav")):
            key = f"{word}/{path.name}"
            part = next((name for name, keys in lists.items() if key in keys), "training")
            parts[part][0].append(log_mel(_one_second(read_wav(path))))
            parts[part][1].append(label)
    sequences = []
    for part, (features, labels) in parts.items():
        if not features:
            raise ValueError(f"{folder} has no recording for {part}: are the lists complete?")
        x = torch.stack(features)
        lengths = torch.full((len(x),), x.shape[1])
        sequences.append(Sequences(x, lengths, torch.tensor(labels)[:, None]))
    train, validation, test = sequences
    return SequenceTask(train, validation, test, classes).standardized()


def read_wav(path: Path) -> Tensor:
    """Return a recording of one channel of 16 bits at 16 kHz as float32 from -1 to 1."""
    try:
        with wave.open(str(path), "rb") as file:
            kind = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            content = file.readframes(file.getnframes())
    except (EOFError, wave.Error) as error:
        raise ValueError(f"{path} is no recording in the wav format ({error})") from error
    if kind != (1, 2, RATE):
        channels, width, rate = kind
        raise ValueError(
            f"{path} has {channels} channels of {8 * width} bits at {rate} Hz: expected one of 16 "
            f"bits at {RATE} Hz"
        )
    return torch.from_numpy(np.frombuffer(content, "<i2").astype(np.float32) / 2**15)


def log_mel(samples: Tensor) -> Tensor:
    r"""Return the logarithms of the powers in 32 bands of the mel scale, each 10 ms.

    .. math:: c_{tb} = \ln\big(10^{-6} + \sum_f w_{bf}\, |X_{tf}|^2\big)

    with the Fourier transform :math:`X` of 25 ms under a Hann window and triangles :math:`w` whose
    corners are evenly spaced in :math:`2595 \log_{10}(1 + f / 700)` from 20 Hz to 8 kHz.
    ``samples`` are at 16 kHz; the result is ``(steps, 32)``, with 98 steps for a second. Source:
    Davis and Mermelstein, "Comparison of parametric representations" (1980).
    """
    if samples.ndim != 1 or len(samples) < WINDOW:
        raise ValueError(
            f"samples has the shape {tuple(samples.shape)}: pass one channel of at least {WINDOW}"
        )
    frames = samples.unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)
    power = torch.fft.rfft(frames, n=512).abs().square()
    return (FLOOR + power @ _triangles().T).log()


def _triangles() -> Tensor:
    """Return the weights ``(32, 257)`` of the bands."""

    def mel(frequency: float) -> float:
        return 2595 * math.log10(1 + frequency / 700)

    corners = torch.linspace(mel(20), mel(RATE / 2), BANDS + 2, dtype=torch.float64)
    low, middle, high = (700 * (10 ** (corners / 2595) - 1)).unfold(0, 3, 1).unsqueeze(-1).unbind(1)
    frequency = torch.linspace(0, RATE / 2, 257, dtype=torch.float64)
    rising, falling = (frequency - low) / (middle - low), (high - frequency) / (high - middle)
    return rising.minimum(falling).clamp(min=0).float()


def _one_second(samples: Tensor) -> Tensor:
    return torch.nn.functional.pad(samples[:RATE], (0, max(0, RATE - len(samples))))

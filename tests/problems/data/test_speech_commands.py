"""Speech commands in a small made folder, and features of tones, noise and silence."""

import math
import wave

import numpy as np
import pytest
import torch

from implicit_solvers.problems.data.speech_commands import (
    load_speech_commands,
    log_mel,
    read_wav,
)

TIME = np.arange(16000) / 16000


def write(path, samples, rate=16000, channels=1, width=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.round(np.asarray(samples) * (2**15 - 1)).astype("<i2").tobytes())


@pytest.fixture
def folder(tmp_path):
    for word, frequency in {"yes": 400, "no": 900, "tree": 2000}.items():
        for number in range(3):
            loudness = 0.2 + 0.1 * number
            length = 16000 - 4000 * number
            tone = loudness * np.sin(2 * math.pi * frequency * TIME[:length])
            write(tmp_path / word / f"{number}.wav", tone)
    write(tmp_path / "_background_noise_" / "long.wav", np.zeros(50))
    for part, number in {"validation": 1, "testing": 2}.items():
        lines = [f"{word}/{number}.wav" for word in ("no", "tree", "yes")]
        (tmp_path / f"{part}_list.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_lists_make_the_parts(folder):
    task = load_speech_commands(folder)
    assert task.classes == ("no", "tree", "yes")
    for part in (task.train, task.validation, task.test):
        assert part.x.shape == (3, 98, 32) and part.y[:, 0].tolist() == [0, 1, 2]
    # half of the test recordings is silence that was filled in
    assert (task.test.x[:, 60:] == task.test.x[:, -1:]).all()
    few = load_speech_commands(folder, words=("yes",))
    assert few.classes == ("yes", "unknown") and few.test.y[:, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("frequency", [150, 440, 1000, 2500, 6000])
def test_a_tone_is_loudest_in_its_band(frequency):
    features = log_mel(torch.tensor(0.5 * np.sin(2 * math.pi * frequency * TIME)).float())

    def mel(f):
        return 2595 * math.log10(1 + f / 700)

    # band b is centred at corner b + 1 of 33 equal parts of the scale
    place = (mel(frequency) - mel(20)) / (mel(8000) - mel(20)) * 33 - 1
    assert (features.argmax(1) - place).abs().max() < 1
    assert features.shape == (98, 32)


def test_powers_add_up_and_silence_is_the_floor():
    samples = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    quiet, loud = log_mel(samples), log_mel(2 * samples)
    torch.testing.assert_close(loud - quiet, torch.full_like(loud, math.log(4)), atol=1e-3, rtol=0)
    torch.testing.assert_close(log_mel(torch.zeros(400)), torch.full((1, 32), math.log(1e-6)))
    # between the outer centres the triangles sum to 1: Parseval for what lies there
    tone = torch.tensor(0.5 * np.sin(2 * math.pi * 1000 * TIME)).float()
    window = torch.hann_window(400)
    energy = 512 * (tone[:400] * window).square().sum() / 2
    assert log_mel(tone)[0].exp().sum().item() == pytest.approx(energy.item(), rel=0.01)


def test_samples_are_read_as_they_were_written(tmp_path):
    samples = np.array([0.0, 0.5, -0.5, 1, -1])
    write(tmp_path / "a.wav", samples)
    np.testing.assert_allclose(read_wav(tmp_path / "a.wav"), samples, atol=1e-4)


def test_wrong_folders_and_files(folder, tmp_path_factory):
    with pytest.raises(ValueError, match=r"no folders of the words \['maybe'\]"):
        load_speech_commands(folder, words=("yes", "maybe"))
    write(folder / "yes" / "0.wav", np.zeros(100), rate=8000)
    with pytest.raises(ValueError, match="1 channels of 16 bits at 8000 Hz: expected"):
        load_speech_commands(folder)
    (folder / "yes" / "0.wav").write_bytes(b"hello")
    with pytest.raises(ValueError, match="0.wav is no recording in the wav format"):
        load_speech_commands(folder)
    (folder / "yes" / "0.wav").unlink()
    (folder / "testing_list.txt").write_text("")
    with pytest.raises(ValueError, match="no recording for testing"):
        load_speech_commands(folder)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match="validation_list.txt"):
        load_speech_commands(empty)
    for part in ("validation", "testing"):
        (empty / f"{part}_list.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="no folder of a word"):
        load_speech_commands(empty)
    with pytest.raises(ValueError, match="one channel of at least 400"):
        log_mel(torch.zeros(399))

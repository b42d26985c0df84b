"""The commands at toy size, and what they wrote."""

import json
from typing import NamedTuple

GLYPHS = (
    "--ways 2 --shots 1 --queries 2 --meta-batch 2 --inner-steps 2 --newton-steps 1 "
    "--adjoint-steps 2 --width 4 --side 7 --instances 3 "
    "--validations 2 --validation-tasks 4 --evaluation-tasks 6"
)
WAVES = (
    "--data sinusoid --shots 3 --queries 4 --width 6 --meta-batch 3 --inner-steps 2 "
    "--newton-steps 1 --adjoint-steps 2 --strength 20 "
    "--validations 2 --validation-tasks 4 --evaluation-tasks 5"
)
METHODS = ("imaml-gd", "imaml-hf", "maml", "fomaml", "reptile", "r2d2")
ERNN = "--rates 0.01 0.03 --hidden 4 --batch 358 --checkpoint-every 1"


class Command(NamedTuple):
    """A command line without ``--out``, its files beside ``config.json``, and its checkpoints.

    ``step`` is one of Adam's in the middle; ``other`` an option of another run, and what the
    refusal to resume says of it.
    """

    line: str
    files: str
    checkpoints: str = ""
    step: int = 1
    other: tuple[str, str] = ("", "")

    @property
    def arguments(self):
        return self.line.split()


COMMANDS = {
    "demo": Command(
        "demo --meta-steps 10 --tasks-per-step 2 --inner-steps 3 --width 4 --queries 2 "
        "--instances 3 --validation-tasks 4 --evaluation-tasks 6 --checkpoint-every 1 --no-memory",
        "figure.png metrics.json",
        *("checkpoint.pt", 5, ("--width 5", "width 4 where this run has 5")),
    ),
    # an epoch has three steps
    "ernn train": Command(
        f"ernn train --models rnn exact leaky --seeds 2 --epochs 2 {ERNN}",
        "learning.png metrics.json",
        *("checkpoint.pt", 5, ("--hidden 5", "hidden 4 where this run has 5")),
    ),
    "ernn table": Command(
        f"ernn table --tasks adding-32 digits --models fastrnn rnn --seeds 1 --epochs 1 {ERNN}",
        "accuracy.png metrics.json table.md",
        "checkpoint-adding-32.pt checkpoint-digits.pt",
        *(9, ("--first-seed 1", "adding-32.first_seed 0 where this run has 1")),
    ),
    "imaml": Command(
        f"imaml {WAVES} --method imaml-gd --steps 12 --checkpoint-every 3",
        "learning.png metrics.json",
        *("checkpoint.pt", 8, ("--seed 5 --lr 1", "lr 0.003 where this run has 1.0, seed 0 where")),
    ),
    "imaml table": Command(
        "imaml table --settings 2x1x2 3x1x1 --methods maml r2d2 --seeds 2 --steps 2 "
        "--trial-steps 1 --meta-batch 2 --inner-steps 1 --ridge 5 --width 4 --side 7 --instances 3 "
        "--validation-tasks 3 --evaluation-tasks 5",
        "metrics.json table.md table.png",
        other=("--inner-lr 0.3", "inner_lr 0.1 where this run has 0.3"),
    ),
    "imaml sinusoid": Command(
        "imaml sinusoid --methods imaml-gd reptile r2d2 --steps 2 --trial-steps 1 --shots 4 "
        "--meta-batch 2 --evaluation-tasks 6",
        "metrics.json sinusoid.png table.md",
        other=("--shots 5", "shots 4 where this run has 5"),
    ),
    "imaml truth": Command(
        "imaml truth --tasks 1 --dimension 5 --inner-steps 1 4",
        "metrics.json truth.png",
    ),
    "imaml costs": Command("imaml costs --width 2 --inner-steps 1 2", "costs.png metrics.json"),
    "ernn gradients": Command(
        "ernn gradients --models rnn exact --hidden 3 --batch 600 --measured 1 --long 5 --epochs 2 "
        "--checkpoint-every 1",
        "gradients.png metrics.json",
        *("checkpoint.pt", 7, ("--epochs 3", "epochs 2 where this run has 3")),
    ),
    "ernn trajectories": Command(
        "ernn trajectories --models rnn exact leaky --train 40 --steps 5 --drawn 2 --epochs 2 "
        "--checkpoint-every 1",
        "metrics.json trajectories.png",
        *("checkpoint.pt", 4, ("--epochs 3", "epochs 2 where this run has 3")),
    ),
    "reparam variance": Command(
        "reparam variance --samples 2000 --points 2 --augmentation 1 2",
        "figure.png metrics.json",
        *("checkpoint.pt", 1, ("--samples 3000", "samples 2000 where this run has 3000")),
    ),
    "reparam vae": Command(
        "reparam vae --dimensions 2 --seeds 1 --epochs 2 --hidden 8 --batch 675 --samples 2 "
        "--checkpoint-every 1",
        "decoded.png elbo.png metrics.json torus.png",
        *("checkpoint.pt", 4, ("--hidden 9", "hidden 8 where this run has 9")),
    ),
    "reparam lda": Command(
        "reparam lda --seeds 1 --epochs 3 --topics 3 --hidden 8 --batch 158 --samples 2 "
        "--checkpoint-every 1",
        "figure.png metrics.json",
        *("checkpoint.pt", 4, ("--hidden 9", "hidden 8 where this run has 9")),
    ),
}
RESUMABLE = [name for name, command in COMMANDS.items() if command.checkpoints]
KEEPING = ["imaml table", "imaml sinusoid"]


def again(name):
    """The option with which a command goes on, or what it has begins again."""
    if name in KEEPING:
        return []
    return ["--resume" if name in RESUMABLE else "--overwrite"]


def metrics_of(out):
    """What does not depend on the machine's speed."""

    def timeless(value):
        if isinstance(value, list):
            return [timeless(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        kept = {key: entry for key, entry in value.items() if key not in ("timing", "seconds")}
        return {key: timeless(entry) for key, entry in kept.items()}

    return timeless(json.loads((out / "metrics.json").read_text()))

"""What the experiments share: options, the folder of a run, training, statistics, figures."""
# ruff: noqa: I001
# fmt: off

from implicit_solvers.problems.experiments.harness.command import Command, execute
from implicit_solvers.problems.experiments.harness.figure import (
    BLUE, GREEN, GREY, ORANGE, RED, canvas
)
from implicit_solvers.problems.experiments.harness.options import (
    COUNT, WHOLE, add_options, add_run_options, configuration_of, default_of, device, number,
    option, reader_of
)
from implicit_solvers.problems.experiments.harness.run_folder import (
    Checkpoint, RunError, RunFolder, read_checkpoint, read_json, record, restoring,
    write_checkpoint, write_whole
)
from implicit_solvers.problems.experiments.harness.statistics import half_width, spread
from implicit_solvers.problems.experiments.harness.training import (
    Curve, Schedule, State, Training, fit, restored, taken, train_all
)

__all__ = [
    "BLUE", "COUNT", "Checkpoint", "Command", "Curve", "GREEN", "GREY", "ORANGE", "RED",
    "RunError", "RunFolder", "Schedule", "State", "Training", "WHOLE", "add_options",
    "add_run_options", "canvas", "configuration_of", "default_of", "device", "execute", "fit",
    "half_width", "number", "option", "read_checkpoint", "read_json", "reader_of", "record",
    "restored", "restoring", "spread", "taken", "train_all", "write_checkpoint", "write_whole",
]

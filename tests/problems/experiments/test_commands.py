"""A table of commands, each of which passes every check; and tables of wrong command lines."""

import contextlib
import errno
import functools
import importlib.metadata
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

import implicit_solvers as ims
from implicit_solvers.problems.__main__ import main
from implicit_solvers.problems.experiments.harness import run_folder
from implicit_solvers.problems.experiments.harness.run_folder import (
    read_checkpoint,
    write_checkpoint,
)
from implicit_solvers.problems.experiments.reparameterization import variance
from tests.problems.experiments.data.made_folders import make_har, make_mini_imagenet, make_omniglot
from tests.problems.experiments.killed_runs import done_in
from tests.problems.experiments.runs import (
    COMMANDS,
    GLYPHS,
    KEEPING,
    RESUMABLE,
    again,
    metrics_of,
)

# other processes shall import this checkout, wherever they run
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
# a shell's background processes, and their children, ignore Control-C
INTERRUPTIBLE = """
import signal, sys
from implicit_solvers.problems.__main__ import main
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
"""
each_command = pytest.mark.parametrize("name", COMMANDS)
each_resumable = pytest.mark.parametrize("name", RESUMABLE)


def run(name, out, *options):
    return main([*COMMANDS[name].arguments, *options, "--out", str(out)])


@each_command
def test_the_files_are_written(name, finished):
    out, command = finished(name).out, COMMANDS[name]
    files = {path.name for path in out.iterdir() if path.is_file()}
    expected = {*command.files.split(), *command.checkpoints.split()}
    assert files == expected | {".lock", "config.json"}
    for figure in out.glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 10_000


@each_resumable
def test_a_finished_run_resumes_to_itself(name, finished):
    before, state = metrics_of(finished(name).out), torch.get_rng_state()
    assert run(name, finished(name).out, "--resume") == 0
    assert metrics_of(finished(name).out) == before
    assert (torch.get_rng_state() == state).all()


@contextlib.contextmanager
def interrupting(step):
    """Press Control-C before a step of Adam's, counted from 1.

    By a hook: torch wraps whatever replaces ``Adam.step``, and would run the hooks of a training,
    which clip gradients, twice a step.
    """
    steps = itertools.count(1)

    def hook(optimizer, args, kwargs):
        if isinstance(optimizer, torch.optim.Adam) and next(steps) == step:
            raise KeyboardInterrupt

    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


measure_all = variance.measure_all  # as it is before a test replaces it


def interrupted_measurements(*arguments):
    yield from itertools.islice(measure_all(*arguments), 7)
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in ("imaml truth", "imaml costs")])
def test_an_interrupted_run_goes_on_to_the_same_bits(name, finished, tmp_path, monkeypatch, capsys):
    """Control-C in the middle of a training: the optimizer's state must come back too."""
    with monkeypatch.context() as patch, interrupting(COMMANDS[name].step):
        patch.setattr(variance, "measure_all", interrupted_measurements)
        assert run(name, tmp_path) == 130
    said, resume = capsys.readouterr().err, [*(again(name) if name in RESUMABLE else [])]
    assert "the same command" in said and " ".join(resume) in said
    assert not (tmp_path / "metrics.json").exists()
    if resume:
        load = lambda: read_checkpoint(tmp_path / checkpoint).get("measurements", [])
        checkpoint, *_ = COMMANDS[name].checkpoints.split()
        measured, content = load(), read_checkpoint(tmp_path / checkpoint)
        assert content["seconds"] > 0
        earlier = 5e4 + content["seconds"]
        write_checkpoint(tmp_path / checkpoint, {**content, "seconds": earlier})
        assert run(name, tmp_path, *resume) == 0
        ours, theirs = metrics_of(tmp_path), metrics_of(finished(name).out)
        assert ours == theirs
        timing = json.loads((tmp_path / "metrics.json").read_text())["timing"]
        assert earlier < timing["total"] < earlier + 500
        if name == "imaml":
            parts = [timing[part] for part in ("loading", "meta_training", "evaluation")]
            assert sum(parts) < timing["total"] - 5e4
        # times included: they were not measured again
        assert load()[: len(measured)] == measured
        assert len(measured) == (7 if name == "reparam variance" else 0)


KILLS = {name: 4 if name == "imaml" else 1 for name in COMMANDS}
LONG = ("imaml table", "imaml sinusoid", "imaml costs", "ernn gradients")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return a function: the folder of runs that were killed and resumed, and what kills left."""

    @functools.cache
    def run(names):
        folder, rows = tmp_path_factory.mktemp("killed"), []
        for name in names:
            bare = name in ("imaml truth", "imaml costs")
            more = "" if bare else " ".join(again(name))
            file = "config.json" if bare else "checkpoint*.pt"
            rows += [name, str(KILLS[name]), file, more, COMMANDS[name].line]
        script = [sys.executable, Path(__file__).with_name("killed_runs.py"), folder, "0", *rows]
        done = subprocess.run(script, capture_output=True, text=True, timeout=500, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        return folder, json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.nightly) if n in LONG else n for n in KILLS]
)
def test_killed_runs_end_as_if_nothing_had_happened(name, killed, finished):
    folder, left = killed(LONG if name in LONG else tuple(n for n in KILLS if n not in LONG))
    whole, steps = metrics_of(finished(name).out), done_in(finished(name).out)
    assert len(left[name]) == KILLS[name]
    if steps is not None:
        # the first kill comes in the midst of training
        assert left[name][0] is not None and left[name][0] < steps
    for kill, moment in enumerate(left[name]):
        assert metrics_of(folder / f"{name}-{kill}") == whole, moment


@pytest.mark.parametrize("name", [n for n in COMMANDS if COMMANDS[n].other[0]])
def test_the_files_of_another_configuration_are_left_alone(name, finished, tmp_path, capsys):
    out, (options, words) = finished(name).out, COMMANDS[name].other
    before = {path: path.read_bytes() for path in out.glob("*.json")}
    assert run(name, out, *options.split(), *again(name)) == 2
    error = capsys.readouterr().err
    assert f"was written with {words}" in error
    assert "pass the same options, another --out, or --overwrite" in error
    assert {path: path.read_bytes() for path in before} == before
    for checkpoint in COMMANDS[name].checkpoints.split():
        # what a checkpoint says is enough
        shutil.copy(out / checkpoint, tmp_path)
        assert run(name, tmp_path, *options.split(), "--resume") == 2
        words = words.removeprefix("adding-32.")
        assert f"{tmp_path}/checkpoint" in (error := capsys.readouterr().err) and words in error
        assert not (tmp_path / "config.json").exists()


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("made by a checkpoint",)


@each_resumable
def test_an_unreadable_checkpoint_is_refused(name, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = COMMANDS[name].checkpoints.split()[-1]
    whole = (finished(name).out / checkpoint).read_bytes()
    write_checkpoint(Path("code.pt"), {"configuration": RunsCode()})
    (tmp_path / "out").mkdir()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2], Path("code.pt").read_bytes()):
        (tmp_path / "out" / checkpoint).write_bytes(content)
        assert run(name, tmp_path / "out", "--resume") == 2
        error = capsys.readouterr().err
        assert f"{checkpoint} is no checkpoint of this command" in error
        assert "delete it, or pass --overwrite" in error
    assert not Path("made by a checkpoint").exists()


@each_command
def test_a_folder_that_cannot_be_made_is_an_error(name, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(name, tmp_path / "file") == 2
    assert f"error: [Errno 17] File exists: '{tmp_path / 'file'}'" in capsys.readouterr().err


# ---- Folders that are shared, full, or damaged ----


def files_of(out):
    paths = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.read_bytes() for path in paths}


@each_command
def test_a_folder_in_which_a_run_is_at_work_is_refused(name, finished, capsys):
    out = finished(name).out
    before = files_of(out)
    with filelock.FileLock(out / ".lock"):
        for options in (again(name), ["--overwrite"]):
            assert run(name, out, *options) == 2
            assert f"another run is at work in {out}: wait" in capsys.readouterr().err
    assert files_of(out) == before


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in KEEPING])
def test_old_results_are_not_replaced_unasked(name, finished, tmp_path, capsys):
    out = finished(name).out
    before = files_of(out)
    assert run(name, out) == 2
    assert "--overwrite to replace it, or another --out" in capsys.readouterr().err
    assert files_of(out) == before
    # a file of the user's own
    (tmp_path / "config.json").write_text('{"mine": 1}', encoding="utf-8")
    assert run(name, tmp_path) == 2
    assert list(files_of(tmp_path).values()) == [b'{"mine": 1}']


@pytest.mark.parametrize(
    "name", ["reparam vae", *(pytest.param(n, marks=pytest.mark.nightly) for n in KEEPING)]
)
def test_overwriting_replaces_what_another_configuration_left(name, finished, tmp_path):
    (options, _), out = COMMANDS[name].other, tmp_path / "out"
    shutil.copytree(finished(name).out, out)
    assert run(name, out, *options.split(), "--overwrite") == 0
    assert metrics_of(out) != metrics_of(finished(name).out)
    assert run(name, out, *options.split(), *again(name)) == 0


@pytest.mark.parametrize("file", ["config.json", "figure", "metrics.json", "checkpoint"])
@each_command
def test_a_full_disk_is_said(name, file, finished, tmp_path, monkeypatch, capsys):
    """What was there stays whole, and there is no half of a file."""
    out, command = tmp_path / "out", COMMANDS[name]
    figure = next(path.name for path in finished(name).out.glob("*.png"))
    file = {"figure": figure, "checkpoint": command.checkpoints.split(" ")[0]}.get(file, file)
    if not file:
        pytest.skip("this command has no checkpoint")
    options = []
    if not file.startswith("checkpoint"):
        shutil.copytree(finished(name).out, out)
        options = again(name)
    before = files_of(out)

    class Full(io.FileIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path, mode):
        return Full(path, mode) if Path(path).name == f"{file}.partial" else open(path, mode)

    monkeypatch.setattr(run_folder, "open", opened, raising=False)
    assert run(name, out, *options) == 2
    words = f"error: {out / file} cannot be written (No space left on device): make room"
    assert words in capsys.readouterr().err
    assert not list(out.rglob("*.partial"))
    # what a run began with stays, whatever its disk had no room for
    assert (out / "config.json").exists()
    if options == ["--overwrite"]:
        return
    for path, content in before.items():
        assert path.suffix == ".png" or path.read_bytes() == content or path.parent == out


@each_resumable
def test_an_interruption_before_a_checkpoint_does_not_name_resume(
    name, tmp_path, monkeypatch, capsys
):
    def interrupted(*arguments):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(variance, "measure_all", interrupted)
    with interrupting(1):
        assert run(name, tmp_path) == 130
    said = capsys.readouterr().err
    assert "there is no checkpoint yet, the same command begins again" in said
    assert "--resume" not in said and not list(tmp_path.glob("*.pt"))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_an_interruption_ends_all_jobs(tmp_path):
    """Each of four trainings would take minutes, and two are queued."""
    line = [*COMMANDS["imaml table"].arguments, "--steps", "100000", "--trial-steps", "0"]
    command = [sys.executable, "-c", INTERRUPTIBLE, *line, "--jobs", "2", "--out", str(tmp_path)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = subprocess.Popen(command, start_new_session=True, env=ENVIRONMENT, **pipes)
    try:
        end = time.monotonic() + 100
        while not any(tmp_path.glob("*/checkpoint.pt")) and time.monotonic() < end:
            assert started.poll() is None
            time.sleep(0.1)
        os.killpg(started.pid, signal.SIGINT)
        _, said = started.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 130
    assert said.endswith("interrupted: the same command goes on\n") and "Traceback" not in said


@each_resumable
def test_missing_entries_are_said(name, finished, tmp_path, capsys):
    """Whatever table of a checkpoint lacks an entry, and a table of metrics that is read again."""
    checkpoint = COMMANDS[name].checkpoints.split()[-1]
    out = tmp_path / "out"
    shutil.copytree(finished(name).out, out)

    def tables(value, path=()):
        if isinstance(value, dict):
            yield path, value
            for key, entry in value.items():
                if key not in ("theta", "optimizer", "kept", "configuration"):
                    yield from tables(entry, (*path, key))
        if isinstance(value, list) and value:
            yield from tables(value[0], (*path, 0))

    content = read_checkpoint(out / checkpoint)
    read = 0
    for path, table in list(tables(content)):
        for key in list(table):
            without = table.pop(key)
            write_checkpoint(out / checkpoint, content)
            table[key] = without
            status, said = run(name, out, "--resume"), capsys.readouterr().err
            # what a run only copies may lack without harm
            assert status in (0, 2), (path, key)
            assert path or status == 2, key
            if status == 2:
                read += 1
                assert checkpoint in said and said.count("\n") == 1, (path, key)
    assert read >= len(content)


def test_metrics_without_an_entry_are_said(finished, tmp_path, capsys):
    shutil.copytree(finished("imaml table").out, tmp_path / "out")
    path = tmp_path / "out" / "2x1x2-maml-seed0" / "metrics.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    for key in ("score", "residuals", "tasks_left_out", "history", "timing"):
        metrics = {name: value for name, value in whole.items() if name != key}
        path.write_text(json.dumps(metrics), encoding="utf-8")
        assert run("imaml table", tmp_path / "out") == 2
        assert f"{path} has no entry '{key}': delete it" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "words"), [("{", "is no JSON"), ("[1]", "holds no table")])
@each_resumable
def test_a_damaged_configuration_is_said(name, content, words, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    for options in ([], ["--resume"]):
        assert run(name, tmp_path, *options) == 2
        assert f"error: {tmp_path / 'config.json'} {words}" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == content


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(place, bit, tmp_path_factory):
    path = tmp_path_factory.mktemp("bit") / "checkpoint.pt"
    write_checkpoint(path, {"configuration": {}, "theta": torch.arange(50.0), "steps": [1, 2]})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(run_folder.RunError, match="is no checkpoint of this command"):
        read_checkpoint(path)


# ---- Without the extras ----

NAMES = ["HersheyFonts", "matplotlib", "sklearn", "seglearn", "lda"]
WITHOUT_EXTRAS = f"""
import sys
sys.modules.update(dict.fromkeys({NAMES}))
from implicit_solvers.problems.__main__ import main
for command in sys.argv[1:]:
    try:
        main([*command.split(), "--help"])
    except SystemExit as exit:
        assert exit.code == 0
    assert main(command.split()) == 2
assert not any(sys.modules[name] for name in {NAMES})
"""


def test_help_needs_no_extra(tmp_path):
    command = [sys.executable, "-c", WITHOUT_EXTRAS, *COMMANDS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"usage: implicit-solvers {name} " in done.stdout
    assert done.stdout.count("--resume") >= len(RESUMABLE) and "watch" in done.stdout
    assert done.stderr.count("pip install 'implicit-solvers[problems]'") == len(COMMANDS)
    for packages in ("HersheyFonts and matplotlib", "matplotlib and lda", "matplotlib and sklearn"):
        assert f"{packages}: pip" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", ["imaml", "ernn", "reparameterization"])
def test_the_page_of_a_command_names_its_extra(page):
    text = Path(__file__).parents[3].joinpath("docs", f"{page}.md").read_text(encoding="utf-8")
    assert "implicit-solvers[problems]" in text


@pytest.mark.parametrize("line", ["train --task watch", "table --tasks watch"])
def test_packages_that_are_missing(line, tmp_path, capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    assert main(["ernn", *line.split(), "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'implicit-solvers[problems]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 0
    assert "usage: implicit-solvers [-h] [--version] COMMAND" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"implicit-solvers {ims.__version__}\n"


def test_output_that_nobody_reads_ends_the_command_quietly(tmp_path):
    code = "import sys; sys.stdin.read(); from implicit_solvers.problems.__main__ import main; "
    command = [sys.executable, "-c", code + "sys.exit(main(['demo', '--help']))"]
    options = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    options["env"] = {**ENVIRONMENT, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, **options, text=True, cwd=tmp_path) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


# ---- Wrong command lines ----

UNFIT = [
    ("demo --width 0", "--width: 0 is not positive"),
    ("demo --inner-lr -1", "--inner-lr: -1 is not positive and finite"),
    ("demo --strength inf", "--strength: inf is not positive and finite"),
    ("demo --seed -1", "--seed: -1 is negative"),
    ("demo --lr x", "--lr: invalid"),
    ("demo --threads 0.5", "--threads: invalid"),
    # an unknown option names itself, not what its value was taken for
    ("--stepz 3", "unrecognized option: --stepz"),
    ("demo --stepz 3", "unrecognized arguments: --stepz 3"),
    ("check --stepz", "unrecognized option: --stepz"),
    ("reparam --stepz 3", "unrecognized option: --stepz"),
    ("imaml --lr 1 --stepz=3 2 table", "unrecognized option: --stepz"),
    ("imaml --lr 1 tabel --steps 3", "EXPERIMENT: invalid choice: 'tabel'"),
    ("imamll --steps 3", "COMMAND: invalid choice: 'imamll'"),
    ("ernn train --task cifar", "--task: invalid choice: 'cifar'"),
    ("ernn train --models transformer", "--models: invalid choice: 'transformer'"),
    ("ernn train --rates 0", "--rates: 0 is not positive"),
    ("ernn train --hidden 0", "--hidden: 0 is not positive"),
    ("ernn train --seeds 0", "--seeds: 0 is not positive"),
    ("ernn train --first-seed -1", "--first-seed: -1 is negative"),
    ("ernn train --clip nan", "--clip: nan is not positive and finite"),
    ("ernn train --epochs 1.5", "--epochs: invalid"),
    ("ernn table --tasks har", "--tasks: invalid choice: 'har'"),
    ("ernn table --batch 0", "--batch: 0 is not positive"),
    ("ernn table --rates x", "--rates: invalid"),
    ("ernn table --checkpoint-every 0", "--checkpoint-every: 0 is not positive"),
    ("imaml --strength 0", "--strength: 0 is not positive and finite"),
    ("imaml --strength -2", "--strength: -2 is not positive and finite"),
    ("imaml --strength nan", "--strength: nan is not positive and finite"),
    ("imaml --damping -1", "--damping: -1 is not positive and finite"),
    ("imaml --ways 0", "--ways: 0 is not positive"),
    ("imaml --seed -1", "--seed: -1 is negative"),
    ("imaml --device cuda:99", "there is no device cuda:99 here"),
    ("imaml --device abacus", "there is no device abacus here"),
    ("imaml table --device meta", "there is no device meta here"),
    ("imaml --resume --overwrite", "not allowed with argument --resume"),
    ("imaml --data letters", "'letters' is no data"),
    ("imaml --data omniglot:", "'omniglot:' is no data"),
    ("imaml --method mamal", "invalid choice: 'mamal'"),
    ("imaml table --settings 5", "'5' is no setting: pass 5x1, say"),
    ("imaml table --settings 5x0", "'5x0' is no setting"),
    ("imaml table --methods mamal", "invalid choice: 'mamal'"),
    ("imaml table --seeds 0", "0 is not positive"),
    *((line, f"argument {line.split()[2]}") for line in (
        "reparam variance --samples 1", "reparam variance --points 0",
        "reparam variance --augmentation 0", "reparam variance --seed -1",
        "reparam variance --threads x", "reparam vae --latents cauchy", "reparam vae --seeds 0",
        "reparam vae --dimensions 0", "reparam vae --lr nan", "reparam vae --start inf",
        "reparam lda --topic-noise 0", "reparam lda --topics 0", "reparam lda --dropout 1",
        "reparam lda --concentration -1", "reparam lda --first-seed -1", "ernn gradients --long 1",
        "ernn gradients --models gru", "ernn gradients --hidden 0", "ernn trajectories --hidden 1",
        "ernn trajectories --noise -1",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), UNFIT, ids=[line for line, _ in UNFIT])
def test_unfit_options_are_refused(line, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(line.split())
    assert words in capsys.readouterr().err


# Command lines in a folder that holds files: with their content, or a function that makes them.
HTML = "<html>not found</html>"
PNG, JPG = "images_background/Latin/character02/0011_01.png", "images/n0500000002.jpg"
CONFIG = "imaml --config run.json"
SMALL = f"imaml {GLYPHS}"
OMNIGLOT = {"data": make_omniglot}
REFUSED = [
    (CONFIG, {"run.json": "{"}, "run.json cannot be read"),
    (CONFIG, {"run.json": "[1]"}, "must hold a table of options, not list"),
    (CONFIG, {"run.json": '{"way": 3}'}, "has the unknown option way: --help lists the options"),
    (CONFIG, {"run.json": '{"ways": 0}'}, "ways = 0 is unfit (0 is not positive)"),
    (CONFIG, {"run.json": '{"ways": 2.5}'}, "ways = 2.5 is unfit"),
    (CONFIG, {"run.json": '{"ways": true}'}, "ways = True must be no truth value"),
    (CONFIG, {"run.json": '{"pooling": 1}'}, "pooling = 1 must be true or false"),
    (CONFIG, {"run.json": '{"method": "mamal"}'}, "method = 'mamal' is none of imaml-gd, imaml-hf"),
    (CONFIG, {"run.json": '{"strength": -1}'}, "strength = -1 is unfit (-1 is not positive and"),
    (CONFIG, {"run.json": '{"data": "omniglot"}'}, "is no data: pass glyphs, sinusoid, omniglot:F"),
    (CONFIG, {"run.json": '{"size": "huge"}'}, "has the unknown option size"),
    ("imaml --config none.toml", {}, "none.toml"),
    ("imaml table --config run.toml", {"run.toml": "ways = 3\nmethod = 'maml'\nwidth = 4"},
     "has method, ways, which the table varies"),
    (f"{SMALL} --ways 1", {}, "ways=1: a task needs two classes or more"),
    (f"{SMALL} --data sinusoid --ways 5", {}, "ways=5: sine waves have no classes"),
    (f"{SMALL} --side 15", {}, "side=15: glyphs have a side of 28, 14, 7 or 4 pixels"),
    (f"{SMALL} --shots 2", {}, "images has 3 instances of each class, fewer than shots + queries"),
    (f"{SMALL} --ways 2000", {}, "ways=2000 is more than the "),
    (f"{SMALL} --width 6 --normalization group", {}, "width=6 is no multiple of 4"),
    (f"{SMALL} --memory-limit 1e-6", {}, "memory_limit=1e+03 bytes, and one alone needs"),
    (f"{SMALL} --data omniglot:data", {}, "there is no folder {tmp}/data"),
    (f"{SMALL} --data omniglot:data", {**OMNIGLOT, f"data/{PNG}": HTML},
     f"{{tmp}}/data/{PNG} is no image, or a part of one"),
    (f"{SMALL} --data mini-imagenet:data", {"data": make_mini_imagenet, f"data/{JPG}": HTML},
     f"{{tmp}}/data/{JPG} is no image, or a part of one"),
    (f"{SMALL} --data mini-imagenet:data", {"data": make_mini_imagenet, "data/val.csv": HTML},
     "its first line must be filename,label"),
    (f"{SMALL} --data omniglot:data --side 8 --shots 2", OMNIGLOT,
     "has 3 instances, fewer than shots + queries = 2 + 2"),
    *((f"ernn train --task {task} --folder .", {}, "{tmp}")
      for task in ("har", "har-2", "speech", "mnist")),
    *((f"ernn train --task {task}", {}, f"the task is {task}: pass the folder")
      for task in ("har", "har-2", "speech", "mnist")),
    ("reparam vae --data .", {}, "train-images-idx3-ubyte"),
    ("ernn train --task digits --folder x", {}, "x', and the task is digits: leave --folder out"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "files", "words"), REFUSED)
def test_what_does_not_fit_is_refused(line, files, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        if callable(content):
            content(tmp_path / name)
        else:
            Path(name).write_text(content)
    assert main([*line.split(), "--out", "out"]) == 2
    assert words.replace("{tmp}", str(tmp_path)) in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.p*"))  # neither a checkpoint nor a figure


@pytest.mark.parametrize("given", ["har", "{tmp}/har"])
def test_a_folder_is_the_same_however_it_is_named(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_har(tmp_path / "har")
    line = "ernn train --task har-2 --models rnn --rates 0.01 --seeds 1 --epochs 1 --hidden 2"
    assert main([*line.split(), "--folder", "har", "--out", "out"]) == 0
    assert metrics_of(Path("out"))["models"][0]["parameters"] == 2 * 2 + 2 * 9 + 2 * 2 + 2 * 2 + 2
    same = ["--folder", given.replace("{tmp}", str(tmp_path)), "--out", "out", "--resume"]
    assert main([*line.split(), *same]) == 0

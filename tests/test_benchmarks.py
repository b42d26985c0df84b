"""The benchmarks as scripts: they measure, refuse what is wrong, and are what the docs say."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "benchmarks"
EXACT = (np.array([1.0, -2.0]), np.array([0.5]))


@pytest.fixture
def benchmarks(monkeypatch):
    """Import modules of the folder as its scripts do."""
    monkeypatch.syspath_prepend(FOLDER)

    yield __import__
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def task(comparison, **answers):
    """A task whose sides return the answers given; a number of them is how long they sleep."""

    def side(answer):
        def make():
            if isinstance(answer, BaseException):
                raise answer
            return lambda: (time.sleep(0.001), answer)[1]

        return make

    sides = {label: side(answer) for label, answer in answers.items()}
    return comparison.Task("toy", "Toy", ("z", "dx"), lambda: EXACT, sides, limit=1e-8, rounds=3)


def test_no_side_is_timed_just_after_a_collection_of_garbage(benchmarks, monkeypatch):
    comparison, called = benchmarks("comparison"), []
    monkeypatch.setattr(comparison.gc, "collect", lambda: called.append("|"))
    calls = {name: (lambda name=name: called.append(name)) for name in "abc"}
    seconds = comparison.alternate(calls, 2)
    # what comes first after it finds cold caches: "c" is called for that, and not timed
    assert "".join(called) == "abc" + "|cabc" * 2 + "|"
    assert [len(own) for own in seconds.values()] == [2, 2, 2]


def test_a_side_that_is_right_is_timed_and_one_that_is_wrong_is_not(benchmarks):
    comparison = benchmarks("comparison")
    z, dx = EXACT
    wrong = {
        "value": (z + np.array([0, 1e-3]), dx),
        "slope": (z, dx * (1 + 1e-6)),
        "nan": (z, np.array([np.nan])),
        "shape": (z, np.array([0.5, 0.5])),
    }
    toy = task(comparison, ours=EXACT, near=(z, dx * (1 + 1e-10)), **wrong)
    rows = {row.label: row for row in comparison.compare(toy)}
    for row in (rows["ours"], rows["near"]):
        assert row.status == "timed"
        assert row.wall_ms >= 1 and row.best_ms <= row.wall_ms and row.ratio > 0
    assert rows["ours"].ratio == 1
    assert rows["near"].errors["dx"] == pytest.approx(1e-10, rel=1e-3)
    for label in wrong:
        assert rows[label].status == "inaccurate"
        assert rows[label].wall_ms is rows[label].cpu_ms is rows[label].ratio is None
    assert "z is off by 5e-04" in rows["value"].detail
    assert "dx is off by 1e-06" in rows["slope"].detail
    table = comparison.markdown(list(rows.values()))
    untimed = [line for line in table if "not timed" in line]
    assert len(untimed) == len(wrong)
    assert all(any(f"| {label} |" in line for line in untimed) for label in wrong)


def test_a_side_that_is_not_there_says_so(benchmarks):
    comparison = benchmarks("comparison")
    toy = task(
        comparison,
        gone=ModuleNotFoundError("No module named 'peer'", name="peer"),
        broken=ValueError("the first line\nand the second"),
        ours=EXACT,
    )
    rows = {row.label: row for row in comparison.compare(toy)}
    assert {label: (row.status, row.detail) for label, row in rows.items()} == {
        "gone": ("missing", "peer is not installed"),
        "broken": ("failed", "ValueError: the first line"),
        "ours": ("timed", rows["ours"].detail),
    }


def test_the_reference_is_not_ours_and_a_broken_side_is_refused(benchmarks):
    newton, comparison = benchmarks("newton"), benchmarks("comparison")
    numbers = lambda: newton.numbers(3, 4)
    ours = lambda: newton.ours(numbers=numbers)

    def broken():
        call = ours()
        return lambda: [factor * x for factor, x in zip((1, 2, 1), call(), strict=True)]

    by_hand = lambda: newton.by_hand(newton.analytic, numbers)
    sides = {"ours": ours, "torch by hand": by_hand, "broken": broken}
    exact, outputs = lambda: newton.exact(*numbers()), ("z", "dW", "dx")
    small = comparison.Task("small", "Small", outputs, exact, sides)
    status = {row.label: row.status for row in comparison.compare(small, rounds=1)}
    assert status == {"ours": "timed", "torch by hand": "timed", "broken": "inaccurate"}


def test_a_script_writes_its_table_and_its_numbers(tmp_path):
    words = [sys.executable, str(FOLDER / "run.py"), *["--tasks", "cg", "--quick", "--out"]]
    done = subprocess.run([*words, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "cg.json").read_text())
    rows = {row["label"]: row for row in result["rows"]}
    assert rows["ours, default"]["status"] == "timed"
    assert rows["torch by hand"]["status"] == rows["SciPy"]["status"] == "timed"
    assert all(row["status"] in ("timed", "missing") for row in rows.values())
    assert result["machine"]["processor"] and "torch" in result["machine"]["versions"]
    table = (tmp_path / "cg.md").read_text()
    assert all(f"| {label} |" in table for label in rows)


def test_the_page_names_every_task_and_has_a_place_for_every_table(benchmarks, tmp_path):
    run, report = benchmarks("run"), benchmarks("report")
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    named = re.findall(r"^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \|", page, flags=re.MULTILINE)
    tasks = re.findall(r"`([a-z_]+)`", " ".join(named))
    assert sorted(tasks) == sorted(run.NAMES)
    for line in re.findall(r'TASKS="([^"]*)"', page + (ROOT / "Makefile").read_text()):
        assert set(line.split()) <= set(run.NAMES)
    assert report.fill(report.fill(page, {}), {}) == report.fill(page, {})
    with pytest.raises(SystemExit, match="summary"):
        report.fill(page.replace("<!-- summary -->", ""), {})


def test_the_report_shows_what_was_measured(benchmarks, tmp_path):
    comparison, report = benchmarks("comparison"), benchmarks("report")
    wrong = (EXACT[0], 2 * EXACT[1])
    sides = {"ours, default": EXACT, "torch by hand": EXACT, "peer": EXACT, "off": wrong}
    rows = comparison.compare(task(comparison, **sides))
    result = {"task": "cg", "title": "A title", "limit": 1e-8, "rows": [vars(row) for row in rows]}
    comparison.write(tmp_path, result)
    results = report.read(tmp_path)
    assert set(results) == {"cg"}
    (line,) = report.summary(results)[2:]
    assert line.startswith("| A title |") and "(peer)" in line and "off" not in line
    assert "not timed" in "\n".join(report.details(results))
    report.chart(results, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


@pytest.mark.nightly
def test_the_overhead_replays_what_was_computed(benchmarks):
    overhead = benchmarks("overhead")
    import implicit_solvers as ims

    for lanes in (5, 0):
        row = overhead.measure(lanes, ims.Newton(), 1)
        kinds = " ".join(row["sequence"])
        assert all(
            f"{kind} (" in kinds for kind in ["f", "jacobian", "factor", "solve", "pullback"]
        )
        # what is not replayed are the calls that look for captured tensors
        assert 0 <= row["calls_of_f"]["solve"] - row["calls_of_f"]["replay"] <= 2
        assert row["overhead"] > 0

"""The solver that runs where none is named is that of the table in ``docs/solving.md``."""

import re
from pathlib import Path

import pytest
import torch

import implicit_solvers as ims

TABLE = (Path(__file__).parents[1] / "docs" / "solving.md").read_text()
F32, F64 = torch.float32, torch.float64
LIMIT = 512


def squares(z, a):
    return z**3 + z - a


def promised(row):
    """Return the cells of a row of the table."""
    (line,) = re.findall(rf"^\| {re.escape(row)} \|(.*)\|$", TABLE, flags=re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def named(cell, n):
    """Return the name that a cell has for ``n`` unknowns."""
    small, *large = re.findall(r"`(\w+)`", cell)
    return large[0] if large and n > LIMIT else small


def solved_by(fn, *arguments, **options):
    """Return the names of the solver and of the adjoint's linear solver."""
    a = arguments[1][0].requires_grad_()
    with ims.monitor() as log:
        fn(*arguments, **options).value.sum().backward()
    assert a.grad is not None
    return [record.solver for record in log.records]


FUNCTIONS = {
    "root": squares,
    "fixed_point": lambda z, a: 0.3 * torch.cos(z) + a,
    "minimize": lambda z, a: (0.25 * z**4 + 0.5 * z**2 - a * z).sum(),
    "least_squares": lambda z, a: torch.cat([squares(z, a), 0.1 * z]),
}


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("n", [1, 3, LIMIT + 1])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_equations(kind, n, dtype):
    a = torch.linspace(0.1, 1, n, dtype=dtype)
    solver, linear, adjoint = promised(f"`{kind}`")
    adjoint = linear if adjoint == "the same" else adjoint
    used = solved_by(
        lambda fn, args, z0: getattr(ims, kind)(fn, z0, args),
        FUNCTIONS[kind],
        (a,),
        torch.zeros_like(a),
    )
    assert used == [named(solver, n), named(adjoint, n)]


@pytest.mark.parametrize("n", [3, LIMIT + 1])
@pytest.mark.parametrize("kind", list(FUNCTIONS)[:3])
def test_patterns(kind, n):
    a = torch.linspace(0.1, 1, n)
    solver, _, adjoint = promised("these with `jac_sparsity=`")
    used = solved_by(
        lambda fn, args, z0: getattr(ims, kind)(fn, z0, args, jac_sparsity=torch.eye(n)),
        FUNCTIONS[kind],
        (a,),
        torch.zeros_like(a),
    )
    assert used == [named(solver, n), named(adjoint, n)]


@pytest.mark.parametrize("n", [3, LIMIT + 1])
def test_prox(n):
    a = torch.linspace(0.1, 1, n, dtype=F64)
    solver, _, adjoint = promised("`minimize` with `prox=`")
    used = solved_by(
        lambda z0, args: ims.minimize(
            lambda z, a: ((z - a) ** 2).sum(),
            z0,
            args,
            prox=lambda v, step, a: v.sign() * (v.abs() - 0.3 * step).clamp(min=0),
        ),
        torch.zeros_like(a),
        (a,),
    )
    assert used == [named(solver, n), named(adjoint, n)]


def test_bracket():
    a = torch.tensor(2.0)
    solver, _, adjoint = promised("`root` with `bracket=`")
    used = solved_by(
        lambda fn, args: ims.root(fn, None, args, bracket=(torch.tensor(0.0), 3.0)), squares, (a,)
    )
    assert used == [named(solver, 1), named(adjoint, 1)]


@pytest.mark.parametrize("n", [3, LIMIT + 1])
@pytest.mark.parametrize("row", ["diagonal operator", "positive definite", "other"])
def test_linear_systems(row, n):
    diagonal = torch.linspace(1, 2, n)
    operator = {
        "diagonal operator": ims.DiagonalOperator(diagonal),
        "positive definite": ims.MatrixOperator(torch.diag(diagonal), positive_definite=True),
        "other": ims.MatrixOperator(torch.diag(diagonal)),
    }[row]
    with ims.monitor() as log:
        ims.linear_solve(operator, torch.ones(n))
    assert log.records[0].solver == named(promised(f"`linear_solve`, {row}")[0], n)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(page, title):
    """Return the table under a title of the measured page: the head, and the rows."""
    section = re.split(r"\n#+ ", page.partition(f" {title}\n")[2])[0]
    head, _, *body = [cells(line) for line in section.splitlines() if line.startswith("|")]
    return head, [row for row in body if row[0] not in ("no-root", "chebyquad-8")]


def test_the_measured_numbers_are_those_of_the_solver_table():
    page = (Path(__file__).parents[1] / "docs" / "solver_table.md").read_text()
    head, measured = rows(page, "From random starts")
    mean = measured[-1]
    random = dict(zip(head, mean, strict=True))
    assert mean[0] == "mean"
    summary = TABLE.partition("| problems | solver | solved |")[2].splitlines()[2:]
    title, found = "", 0
    for line in summary[: summary.index("")]:
        first, solver, solved, calls, share = cells(line)
        title = title if first in ("", "of one unknown") else first
        names, body = rows(page, title)
        column = [row[names.index(solver)] for row in body]
        tried = [cell for cell in column if cell != "refused"]
        ended = [
            int(c.split("/")[1]) if "/" in c else int(c) for c in tried if c[0] in "*0123456789"
        ]
        assert solved == f"{len(ended)} of {len(tried)}", (title, solver)
        assert int(calls) == sorted(ended)[len(ended) // 2], (title, solver)
        known = title == "Roots" and solver in random
        assert share == (f"{random[solver]}%" if known else ""), (title, solver)
        found += 1
    assert found == 25

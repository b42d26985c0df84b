"""Put faults into the core, one line each, and see that a test fails for each.

    python tests/fault_injection.py [--only WORDS] [--core] [--jobs N] [--limit SECONDS]

A fault is named by its function, so that the table can be carried over when the core is rewritten:
what is not there any more is an error, as is a fault that no test sees.
"""

import argparse
import ast
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

# module, function: what goes wrong / the line before >>> and after / the quickest tests that see it
TABLE = """
differentiate Attach.backward: the sign of a gradient in plain autograd
    (None, None, None, -w, >>> (None, None, None, w,
    test_wrong_answers.py::test_01_gradient_of_a_0d_unknown
differentiate Attach.backward: the sign of a gradient where a lane failed or under transforms
    [(z, -w)] >>> [(z, w)]
    test_wrong_answers.py::test_12_a_nan_lane_spoils_no_other
differentiate Attach.backward: a graph of first order serves a second derivative
    first = value is not None and not torch.is_grad_enabled() >>> first = value is not None
    trust/test_faults.py::test_derivatives_of_each_order_where_the_slope_depends_on_the_solution
differentiate Attach.backward: a lane whose adjoint failed is kept
    keep = ~(bad | also_bad) >>> keep = ~bad
    trust/test_faults.py::test_an_adjoint_that_failed_is_left_out_of_what_lanes_share
differentiate Attach.jvp: the sign of a tangent
    rhs = -push_forward >>> rhs = push_forward
    trust/test_faults.py::test_derivatives_of_each_order_where_the_slope_depends_on_the_solution
differentiate AttachSpec.linear: the adjoint is not transposed
    transposed=transposed and >>> transposed=False and
    test_wrong_answers.py::test_02_coupled_tuple_keeps_the_off_diagonal_blocks
differentiate AttachSpec.linear: forward mode writes where backward solves start
    self.solve.adjoint_start if transposed else None >>> self.solve.adjoint_start
    trust/test_faults.py::test_forward_mode_leaves_the_start_of_backward_solves_alone
linear.lane_solve solve_in_lanes: the adjoint's failure is ignored
    enforce(spec.on_failure, >>> enforce("warn" if spec.adjoint else spec.on_failure,
    trust/test_faults.py::test_an_adjoint_that_failed_is_held_to_the_policy
linear.lane_solve solve_in_lanes: an adjoint that failed is kept under "mask"
    if spec.adjoint and spec.masked and >>> if spec.adjoint and not spec.masked and
    trust/test_faults.py::test_an_adjoint_that_failed_is_held_to_the_policy
linear.direct_solve solve_directly: no digit is right, and nobody says so
    lost = ~(found.solid & >>> lost = ~(
    linear/test_direct_solve.py
linear.direct_solve judged: what rounding makes is left out
    error = parts[0] + eps * parts[1:].amax(0) >>> error = parts[0]
    linear/test_direct_solve.py
linear.direct_solve solve_directly: no other factorization is tried
    solver.backup is not None >>> False
    linear/test_direct_solve.py
linear.lane_solve solve_in_lanes: the preconditioner of an adjoint is not transposed
    transposed=spec.transposed >>> transposed=spec.transposed and hi > second
    test_adjoints.py::test_a_preconditioner_of_the_adjoint_is_used_and_transposed
linear.lane_solve _Grid.back: lanes come back by the order that they went
    inverse = sorted(range(k), key=lambda i: self.order[i]) >>> inverse = self.order
    trust/test_faults.py::test_three_levels_of_systems_whose_lanes_leave
linear.lane_map LaneMap.take: another column's operator
    index % self.grid >>> index // self.columns
    trust/test_faults.py::test_three_levels_of_systems_whose_lanes_leave
linear.problem LinearProblem.take: another lane's unit
    self.unit[index] >>> self.unit[: len(index)]
    trust/test_faults.py::test_a_lane_keeps_its_absolute_tolerance_when_others_leave
linear.problem LinearProblem.take: another lane's right-hand side
    self.b[index] >>> self.b[: len(index)]
    trust/test_faults.py::test_three_levels_of_systems_whose_lanes_leave
linear.rule LinearSolve.backward: the sign of an operator's gradient
    pairs = [(x, -gb)] >>> pairs = [(x, gb)]
    trust/test_faults.py::test_derivatives_of_a_linear_system
linear.rule LinearSolve.jvp: the sign of an operator's tangent
    rhs = rhs - moved( >>> rhs = rhs + moved(
    trust/test_faults.py::test_derivatives_of_a_linear_system
linear.rule _again: the backward solve is not transposed
    spec.transposed != adjoint >>> spec.transposed
    trust/test_faults.py::test_derivatives_of_a_linear_system
linear.linear_operator ScaledOperator.rmv: a scale is not conjugated
    self.scale.conj() if >>> self.scale if
    trust/test_faults.py::test_a_scaled_complex_operator_is_transposed_with_its_scale
problem EquationProblem.take: another lane's start
    self.start[index] >>> self.start[: len(index)]
    trust/test_faults.py::test_a_lane_keeps_its_start_when_others_leave
problem EquationProblem.scale: the size is that of an iterate before
    or known[1] is not z: >>> or False:
    trust/test_faults.py::test_default_tolerances_follow_the_iterate
autodiff without_autocast: backward passes multiply in half precision under autocast
    enabled=False >>> enabled=True
    test_precision.py::test_a_backward_pass_under_autocast_is_the_same
precision _InPrecision.__call__: captured weights are read in half precision
    scope: Any = _Widening(self.dtype) >>> scope: Any = contextlib.nullcontext()
    test_precision.py::test_captured_weights_in_half_precision_are_read_in_float32
lanes Lanes.take: other lanes' tensors
    where = (index,) if >>> where = (index - index[0],) if
    trust/test_faults.py::test_lanes_that_leave_one_by_one
lanes Lanes.lift: levels in another order
    (d is not None, *levels) >>> (*levels, d is not None)
    trust/test_faults.py::test_levels_that_different_tensors_carry
masking _gradient: lanes that failed have a part in gradients
    whole = len(index) == math.prod(shape) or >>> whole = True or
    test_wrong_answers.py::test_12_a_nan_lane_spoils_no_other
masking _scatter: of lanes that share a tensor the last counts
    accumulate=True >>> accumulate=False
    trust/test_faults.py::test_a_failed_lane_and_a_tensor_that_some_levels_carry
masking _paired: a complex cotangent is not conjugated
    w.conj() * fn >>> w * fn
    trust/test_faults.py::test_a_complex_system_in_which_a_lane_failed
capture Captured.__or__: what only the solution reads is left out
    _union(self.tensors, other.tensors) >>> self.tensors
    trust/test_faults.py::test_what_only_the_solution_reads_is_captured
capture Captured.check_unchanged: a tensor written to since is not noticed
    version(tensor) != before >>> version(tensor) < before
    trust/test_changed_tensors.py::test_a_constant_written_to_before_the_backward_pass_is_an_error
capture Substitution.__init__: arguments are put in the places of captured tensors
    operands[len(operands) - len(captured.tensors) :] >>> operands[: len(captured.tensors)]
    trust/test_faults.py::test_captured_tensors_beside_arguments
capture _must_reach: a captured tensor's tangent is lost
    (forward_level() and may_have_tangent(tensor)) >>> False
    trust/test_faults.py::test_captured_tensors_beside_arguments
capture _Recording.restore: a recording leaves its marks in buffers
    buffer.data.copy_(value) >>> pass
    test_captured_tensors.py::test_recording_and_derivatives_leave_the_generator_and_buffers_alone
capture isolated: a scope is not restored
    _THREAD.scopes.pop() >>> pass
    trust/test_faults.py::test_what_is_read_after_a_layer_inside_is_captured
capture _Thread: threads see each other's scopes
    class _Thread(threading.local): >>> class _Thread:
    trust/test_threads.py::test_threads_do_not_meet
solvers.damped Halving.pays: a step that does not pay is taken
    accepted=error <= least >>> accepted=error == error
    trust/test_faults.py::test_a_step_that_does_not_pay_is_made_shorter
solvers.damped Damped.step: lanes that have ended move
    z = pick(state.flag == 0, z, state.z) >>> pass
    test_lanes.py::test_masked_mode_and_compaction_agree
solvers.newton measured: a step that does not pay is taken
    rest - (1 - 0.25 * t) * size <= 0 >>> rest == rest
    trust/test_faults.py::test_a_step_that_does_not_pay_is_made_shorter
solvers.newton measured: what is infinite on both sides pays
    rest - (1 - 0.25 * t) * size <= 0 >>> rest <= (1 - 0.25 * t) * size
    solvers/test_ends.py::test_failure
solvers.trust_region _weighed: any step pays
    pays = ratio >= 1e-4 >>> pays = ratio == ratio
    trust/test_faults.py::test_a_lane_of_fits_stays_where_it_ended
solvers.damped DampedState.settled: a lane moves where its trial was not accepted
    pick(accepted, self.point, self.kept) >>> self.point
    trust/test_faults.py::test_a_step_that_does_not_pay_is_made_shorter
agreement settle: what holds in most lanes is taken for all
    0 < count < lanes else >>> 0 < count < lanes - 1 else
    trust/test_faults.py::test_a_step_that_does_not_pay_is_made_shorter
problem EquationProblem._linearized: a Jacobian at another point
    kept is None or kept.z is not z or >>> kept is None or
    trust/test_faults.py::test_a_jacobian_is_that_at_the_point_that_is_asked_for
iterate _look: steps that were not accepted count
    iterations = iterations + both(budget or accepted, running) >>> iterations = trials
    trust/test_faults.py::test_a_step_that_does_not_pay_is_made_shorter
linear.lu LU.factor_dense: rows in small units are passed over as pivots
    scaled_rows(matrix) >>> (matrix, torch.ones_like(matrix[..., :1].abs()))
    trust/test_faults.py::test_units_of_rows_stay_out_of_a_linear_solve
iterate _look: the status of a lane that ended is written again
    status = pick(ends, code, status) >>> status = code
    trust/test_faults.py::test_a_lane_that_was_flagged_keeps_its_status
iterate _begin: one iteration too many is counted
    RUNNING, made - 1, >>> RUNNING, made,
    test_wrong_answers.py::test_03_cg_returns_the_converged_iterate
iterate _coast: steps past the end of a lane are kept
    if not left > 0: >>> if False:
    solvers/test_fixed_points.py::test_lanes_end_where_they_would_if_no_step_were_foreseen
iterate _look: the worst iterate is kept
    state.error <= best[1]) if >>> state.error > best[1]) if
    trust/test_faults.py::test_a_lane_that_failed_returns_its_best_iterate
outcome with_ended: a lane that ended goes on
    k: pick(running, getattr(new, k), getattr(old, k)) >>> k: getattr(new, k)
    trust/test_faults.py::test_a_lane_that_ended_stands_still
outcome Departed.leave: lanes come back to others' places
    self.places = self.places[keep] >>> self.places = keep
    trust/test_faults.py::test_lanes_that_leave_one_by_one
outcome proposed: what is not finite is no failure
    pick(error < torch.inf, status, int(Status.NONFINITE)) >>> status
    trust/test_faults.py::test_a_lane_that_failed_returns_its_best_iterate
solution failed: a budget is a failure
    int(Status.BUDGET) >>> int(Status.CONVERGED)
    test_wrong_answers.py::test_03_cg_goes_on_when_the_residual_is_exactly_zero
solution enforce: a failure is a warning where it should raise
    if policy == "raise": >>> if policy == "none":
    test_wrong_answers.py::test_13_an_unconverged_lane_has_no_gradient
verdict judged: no digit need be right
    both(e + e0 <= digit, probe <= _COARSE * digit) >>> True
    trust/test_faults.py::test_a_matrix_that_is_singular_but_for_rounding
verdict judged: an error of twenty roundings is too large
    both(e <= ROUNDINGS * e0, seen.drowned) >>> False
    trust/test_faults.py::test_an_ill_conditioned_root_is_as_good_as_rounding_allows
verdict judged: a lane that is no solution goes on from where it was
    start = pick(e <= digit, z - seen.step, z) >>> start = z
    trust/test_faults.py::test_a_lane_goes_on_from_newtons_next_point
verdict judged: a saddle is not left
    start = pick(bent, z + seen.kick, start) >>> pass
    solvers/test_descent.py::test_a_saddle_is_left_unless_the_solve_begins_there
verdict _curved: a saddle is left where the solve begins
    found.iterations == 0 >>> False
    solvers/test_descent.py::test_a_saddle_is_left_unless_the_solve_begins_there
tolerance linear_tolerance: a tolerance does not scale with the right-hand side
    relative * norm(b) >>> relative + 0 * norm(b)
    trust/test_faults.py::test_default_tolerances_follow_the_iterate
structure Structure._join: leaves in another order
    torch.cat(flat, dim=-1) >>> torch.cat(flat[::-1], dim=-1)
    trust/test_faults.py::test_an_unknown_of_several_tensors_keeps_their_order
autodiff pullback_on_graph: a plain pullback has no graph
    create_graph=torch.is_grad_enabled() >>> create_graph=False
    test_wrong_answers.py::test_06_second_derivatives
torch_internals below_jvp: outer levels do not see a tangent
    interpreter.lower(): >>> contextlib.nullcontext():
    trust/test_faults.py::test_derivatives_of_each_order_where_the_slope_depends_on_the_solution
differentiate _first_order_only: an estimate is differentiated again
    FirstOrderOnly.apply(what, tensor) >>> tensor
    test_adjoints.py::test_biased_adjoints_raise_when_they_are_differentiated_again
unrolling unroll: a lane takes a step more than its solver did
    step < counts >>> step <= counts
    test_adjoints.py::test_unrolled_lanes_stop_where_the_solver_stopped
custom_solvers _Judge.__call__: what is no root is accepted
    status == RUNNING, int(Status.REJECTED), status >>> status == RUNNING, 0, status
    test_wrong_answers.py::test_11_a_stationary_point_that_is_no_root_is_a_failure
linear.sparsity greedy_colors: rows that cross have one color
    taken[place] |= free >>> taken[place] |= 0
    test_sparse_jacobians.py::test_colors_show_all_entries
linear.sparsity SparsityPattern.refuse_missing: what a pattern misses is left out
    if bool(missing.any()): >>> if False:
    test_sparse_jacobians.py::test_a_pattern_that_misses_an_entry_is_refused
linear.superlu factored: the factorization of every step stays
    first if A.places is None else A.places >>> first
    test_sparse_jacobians.py::test_factors_live_as_long_as_the_graph
"""


class Fault(NamedTuple):
    """A line of a function before and after, and the tests that should see it."""

    module: str
    function: str
    what: str
    before: str
    after: str
    tests: list[str]

    def broken(self, tree: Path) -> tuple[Path, str]:
        """Return the file of the function in ``tree``, and its text with the fault."""
        path = tree / "implicit_solvers" / (self.module.replace(".", "/") + ".py")
        text = path.read_text()
        node: ast.AST = ast.parse(text)
        for name in self.function.split("."):
            found = [n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == name]
            if not found:
                raise LookupError(f"{self.module} has no {self.function}")
            node = found[0]
        lines = text.splitlines(keepends=True)
        first, last = node.lineno - 1, node.end_lineno
        body = "".join(lines[first:last])
        if body.count(self.before) != 1:
            raise LookupError(f"{self.function} does not have once: {self.before}")
        body = body.replace(self.before, self.after)
        return path, "".join([*lines[:first], body, *lines[last:]])


def read(table: str) -> list[Fault]:
    """Return the faults of a table: three lines each."""
    lines = table.strip().splitlines()
    faults = []
    for head, change, tests in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        place, what = head.split(": ", 1)
        before, after = change.strip().split(" >>> ")
        paths = [f"tests/{test}" for test in tests.split()]
        faults.append(Fault(*place.split(), what, before, after, paths))
    return faults


def copied(tree: Path) -> Path:
    """Copy what the tests need, with what Python has compiled of it."""
    for part in ("implicit_solvers", "problems", "tests", "docs"):
        ignored = shutil.ignore_patterns("_build")
        shutil.copytree(ROOT / part, tree / part, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


CORE = ["-m", "core and not nightly"]


def run(tests: list[str], limit: float, fault: Fault | None = None) -> tuple[str, str, float]:
    """Run tests in a copy of the tree: whether they "passed" or what else, who failed, seconds."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder))
        if fault is not None:
            path, text = fault.broken(tree)
            path.write_text(text)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        try:
            done = subprocess.run(
                [*command, *tests], cwd=tree, env=environment, timeout=limit, **pipes
            )
        except subprocess.TimeoutExpired:
            return "OUTLASTED THE LIMIT", "", time.monotonic() - begin
    seconds = time.monotonic() - begin
    failed = re.search(r"^FAILED .*?([^/]+::.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return "killed", failed[1], seconds
    passed = done.returncode in (0, 5)  # 5: none of the tests is of the tier
    return ("passed" if passed else "DID NOT RUN"), "" if passed else done.stdout[-3000:], seconds


def run_listed(limit: float, fault: Fault) -> tuple[str, str, float]:
    """Run the listed tests."""
    return run(fault.tests, limit, fault)


def run_core(limit: float, fault: Fault) -> tuple[str, str, float]:
    """Run what of the listed tests is in the core tier, then the tier."""
    first = run([*CORE, *fault.tests], limit, fault)
    if first[0] != "passed":
        return first
    state, said, seconds = run([*CORE, "tests"], limit, fault)
    return state, said, first[2] + seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose module, function or words hold it")
    parser.add_argument("--core", action="store_true", help="run -m core, not the listed tests")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900, help="seconds for the tests of a fault")
    options = parser.parse_args()
    faults = [f for f in read(TABLE) if options.only in f"{f.module} {f.function}: {f.what}"]
    for fault in faults:
        fault.broken(ROOT)
    listed = sorted({test for fault in faults for test in fault.tests})
    state, said, seconds = run([*CORE, "tests"] if options.core else listed, 2 * options.limit)
    print(f"without a fault: {state} {said} ({seconds:.0f} s)", flush=True)
    if state != "passed":
        return 1
    see = run_core if options.core else run_listed
    killed = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(see, options.limit, f): f for f in faults}
        for done in concurrent.futures.as_completed(running):
            (state, said, seconds), fault = done.result(), running[done]
            killed += state == "killed"
            word = "SURVIVED" if state == "passed" else state
            place = f"{fault.module} {fault.function}: {fault.what}"
            print(f"{word} ({seconds:.0f} s) {place}  {said}", flush=True)
    print(f"{killed} of {len(faults)} faults are killed")
    return int(killed < len(faults))


if __name__ == "__main__":
    sys.exit(main())

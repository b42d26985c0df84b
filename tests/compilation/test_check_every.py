"""``check_every``: convergence is asked for now and then."""

import pytest
import torch

from .systems import ROWS


def test_questions_are_few():
    """Count how often values are read on the host."""
    reads = ("__bool__", "__int__", "item", "tolist")
    questions = [getattr(torch.Tensor, name) for name in reads]

    class Counter(torch.overrides.TorchFunctionMode):
        asked = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.asked += func in questions
            return func(*args, **(kwargs or {}))

    system, solver = ROWS["FixedPointIteration"].problem, ROWS["FixedPointIteration"].solver
    x, w = system.data(8)
    counts = []
    for every in (1, 10):
        with torch.no_grad(), Counter() as counter:
            sol = system.run(solver(check_every=every))(x[4:], w)
        counts.append(counter.asked)
    steps = int(sol.iterations.max())
    assert steps > 20
    assert counts[1] <= steps // 10 + 5 < counts[0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["Newton", "Chord", "FixedPointIteration", "Anderson"])
def test_no_synchronization_between_checks(name):
    system, solver = ROWS[name].problem, ROWS[name].solver
    x, w = (t.cuda() for t in system.data(64))
    every = 16
    run = system.run(solver(check_every=every, compact=False, max_steps=every, rtol=None))
    with torch.no_grad():
        run(x, w)  # handles, workspaces
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchronizing") as caught:
                run(x, w)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(caught) <= 8

"""A meta-batch over two and three processes: the same as over one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from implicit_solvers.problems.imaml.distributed import distributed_meta_gradient
from tests.problems.imaml.distributed_worker import BATCHES, METHODS, arguments_of, results
from tests.problems.imaml.meta_tasks import assert_same

WORKER = Path(__file__).with_name("distributed_worker.py")


@pytest.mark.filterwarnings("ignore:.* tasks so far")
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_processes_share_the_tasks(ranks, tmp_path):
    processes = [
        subprocess.Popen([sys.executable, WORKER, str(rank), str(ranks), str(tmp_path)])
        for rank in range(ranks)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * ranks
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    expected = results()
    assert len(expected) == len(METHODS) * len(BATCHES) + 2
    for key, alone in expected.items():
        got = found[0][key]
        # sums in another order, and fewer lanes in a product
        torch.testing.assert_close(got, alone, rtol=1e-6, atol=1e-12, equal_nan=True)
        for other in found[1:]:
            torch.testing.assert_close(other[key], got, rtol=0, atol=0, equal_nan=True)
    for name in METHODS:
        assert not expected[name, "odd"]["left_out"].any()
    nan = expected["MAML", "NaN"]["left_out"].tolist()
    assert nan == [False, True, False, False, False]
    assert expected["MAML", "all NaN"]["left_out"].all()


def test_one_process_needs_no_group():
    arguments = arguments_of("MAML", 5)
    got = distributed_meta_gradient(METHODS["MAML"], *arguments, tasks_at_once=2)
    assert_same(got, METHODS["MAML"].meta_gradient(*arguments, tasks_at_once=2))


def test_a_group_of_one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        arguments = arguments_of("MAML", 5)
        got = distributed_meta_gradient(METHODS["MAML"], *arguments)
        assert_same(got, METHODS["MAML"].meta_gradient(*arguments), rtol=1e-14)
        with pytest.raises(ValueError, match="first dimension"):
            distributed_meta_gradient(METHODS["MAML"], *arguments[:4], (torch.zeros(7),))
    finally:
        dist.destroy_process_group()

"""How accurate solutions and derivatives are, by class of problem; ``-s`` shows the table."""

import numpy as np
import pytest

from tests.problems.convex.accuracy import CLASSES, errors


@pytest.mark.parametrize("draws", [2, pytest.param(20, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", CLASSES)
def test_of_every_class(name, draws):
    table = errors(name, draws)
    medians, largest = np.median(table, 0), table.max(0)
    of_value, of_slope = zip(medians, largest, strict=True)
    print("{:16} value {:.0e} {:.0e} slope {:.0e} {:.0e}".format(name, *of_value, *of_slope))
    assert (medians <= 1e-9).all() and (largest <= 1e-6).all()

"""Every wrong call of tests/refusals is refused, in words that name the fix."""

import pytest

from tests.refused import AREAS, area, left, names_for, squeezed

CASES = [(name, row) for name in AREAS for row in area(name).ROWS]


@pytest.mark.parametrize("name, row", CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_a_wrong_call_is_refused_with_the_fix(name, row):
    try:
        space = names_for(area(name).SETUP)
    except ImportError as missing:
        assert not (missing.name or "").startswith("implicit_solvers"), missing
        pytest.skip(f"an extra is not installed: {missing}")
    try:
        with pytest.raises(row.error) as caught:
            exec(row.call, space)
    finally:
        left()
    assert squeezed(row.words) in squeezed(str(caught.value))


def test_the_list_reaches_every_area():
    assert len(AREAS) >= 2 and all(row.words.strip() for _, row in CASES)

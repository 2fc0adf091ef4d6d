"""The same promise as test_end_to_end.py on convolutions, pools, reductions and layouts."""

from __future__ import annotations

import pytest

from tests.structures_fixed import names
from tests.test_end_to_end import check


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's, about the user's model
@pytest.mark.parametrize("name", names("structures_fixed_maps"))
def test_maps(name: str) -> None:
    check(name)

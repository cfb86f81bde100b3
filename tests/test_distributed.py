"""Which errors may be of another process, whose end is then waited for."""

import jax
import pytest

from must_jax import distributed
from must_jax.errors import UserError


@pytest.mark.parametrize(
    ("error", "is_of_runtime"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: the other side is gone"), True),
        # As a gather between steps raises it where a process was killed in its midst.
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), True),
        (ValueError("UNKNOWN of this kind"), False),
        (KeyError("UNKNOWN: "), False),
        (UserError("INTERNAL: no such file"), False),
    ],
)
def test_errors_of_the_runtime_are_told_from_own_ones(error, is_of_runtime):
    assert distributed.is_of_runtime(error) is is_of_runtime

"""The one exception that users see."""


class UserError(Exception):
    """Bad input, told in one line: what was wrong, where, and what to do.

    `must_jax.main` and the programs in `tools/` print the message alone and exit with code 2.
    """

"""The one exception that users see, and how text reaches their terminal."""


def one_line(text: str) -> str:
    """`text` without line breaks, control characters or undecodable bytes, which are escaped.

    File names may hold all of them, and a terminal may refuse or obey them.
    """
    clean = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in clean)


def first_line(error: BaseException) -> str:
    """What libraries say before their pages of detail, as `one_line` has it."""
    return one_line(str(error).strip().partition("\n")[0])


class UserError(Exception):
    """Bad input, told in one line: what was wrong, where, and what to do.

    `must_jax.main` and the programs in `tools/` print the message alone and exit with code 2.
    """

    def __init__(self, message: str):
        """The message is kept to one printable line."""
        super().__init__(one_line(message))

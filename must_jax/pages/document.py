"""A page that is complete in one file: no script, nothing to fetch."""

from __future__ import annotations

import importlib.resources
import pathlib

from must_jax.local_files import replace_file
from must_jax.pages.parts import escaped

# A browser refuses whatever slips past the escaping: scripts, frames, anything from elsewhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: str) -> str:
    """The page as HTML that is well-formed XML too.

    Args:
        title: Plain text.
        body: HTML, made of `parts`.
    """
    style = importlib.resources.files("must_jax").joinpath("assets/pages/style.css").read_text()
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(_POLICY)}"/>'
        f"<title>{escaped(title)}</title><style>\n{style}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def write_page(path: pathlib.Path, html: str) -> None:
    """Writes a page whole or not at all, in a folder that is made if it is missing.

    Raises:
        OSError: It can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, html.encode())

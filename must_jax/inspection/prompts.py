"""Prompts that the text tower does not read to their end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """How long the prompts are, in tokens, start and end included.

    Attributes:
        count: Prompts of all classes.
        context_length: Tokens that the text tower reads.
        longest: Tokens of the longest prompt.
        num_cut: Prompts that are longer than the context.
        cut: The longest of them with their number of tokens, at most 20.
    """

    count: int
    context_length: int
    longest: int
    num_cut: int
    cut: tuple[tuple[str, int], ...]


def measure(texts: Sequence[str], lengths: Sequence[int], *, context_length: int) -> Prompts:
    """Finds the prompts of `texts`, `lengths` tokens long, that are cut."""
    cut = [pair for pair in zip(texts, lengths, strict=True) if pair[1] > context_length]
    cut.sort(key=lambda pair: -pair[1])
    return Prompts(
        count=len(texts),
        context_length=context_length,
        longest=max(lengths, default=0),
        num_cut=len(cut),
        cut=tuple(cut[:SHOWN]),
    )

"""The contact sheet on a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from must_jax.inspection.sheet import Card, Guess
from must_jax.pages.parts import escaped

PIXELS_SHOWN = 64  # views up to this side are shown with sharp pixels


def sheet(
    cards: Iterable[Card], *, source: str, class_names: Sequence[str], image_size: int
) -> str:
    """All views of some images.

    Args:
        cards: The images.
        source: What their names start with, and need not be told with each.
        class_names: K names.
        image_size: Of the views, pixels.
    """
    shown = "".join(_card(card, source=source, class_names=class_names) for card in cards)
    return f'<div class="sheet{" pixels" if image_size <= PIXELS_SHOWN else ""}">{shown}</div>'


def _card(card: Card, *, source: str, class_names: Sequence[str]) -> str:
    name = card.name.removeprefix(f"{source}/")

    def told(who: str, guess: Guess) -> str:
        return f"{who}: {class_names[guess.predicted]}, {guess.confidence:.0%}"

    lines = []
    if card.zero_shot is not None:
        lines.append(told("zero-shot", card.zero_shot))
    if card.teacher is not None:
        lines.append(told("teacher", card.teacher))
    if card.label is not None:
        lines.append(f"label: {class_names[card.label]}")
    pictures = {
        "weak": ("weak view", card.weak),
        "strong": ("strong view", card.strong),
        "masked": ("strong view with masked patches in a grey pattern", card.masked),
        "filled in": ("strong view with masked patches filled in by the model", card.reconstructed),
    }
    views = "".join(
        f'<div><img src="{address}" alt="{escaped(f"{what} of {name}")}"/>{short}</div>'
        for short, (what, address) in pictures.items()
    )
    told_lines = "".join(f"<br/>{escaped(line)}" for line in lines)
    return (
        f'<figure class="card"><div class="views">{views}</div>'
        f"<figcaption><code>{escaped(name)}</code>{told_lines}</figcaption></figure>"
    )

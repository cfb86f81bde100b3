"""What a `tokenizer.json` says is done to a text before it is cut into tokens."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from must_jax.errors import UserError
from must_jax.local_files import read_text

_MAX_STEPS = 16  # what transformers writes for SigLIP 2 has three
_MAX_GROWTH = 1024  # of a text's length, by all steps together
# Letters of a pattern that stand for one character, and what repeats the one before.
_ONE_CHARACTER = re.compile(r"\\p\{\^?\w+\}|\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATS = re.compile(r"[*+?{]")


def check_pipeline(path: Path) -> None:
    """Refuses what would make gigabytes, hours or chance of a text.

    Replacements multiply a text where they follow each other, a pattern with repeats within repeats
    can take a time that doubles with each letter, and BPE's dropout cuts each time anew.

    Args:
      path: of a `tokenizer.json`.

    Raises:
      UserError: it does, or it can't be read.
    """
    try:
        told = json.loads(read_text(path))
        steps = [
            step for name in ("normalizer", "pre_tokenizer") for step in _steps(told.get(name))
        ]
        if (told.get("model") or {}).get("dropout"):
            raise UserError(f"{path}: its model has dropout, with which no text is cut twice alike")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error!r:.200})") from error
    if len(steps) > _MAX_STEPS:
        raise UserError(f"{path}: {len(steps)} steps prepare a text; {_MAX_STEPS} are the most")
    growth = 1.0
    for step in steps:
        pattern = step.get("pattern")
        if not isinstance(pattern, dict):
            continue
        literal, expression = pattern.get("String"), pattern.get("Regex")
        if literal == "" or (isinstance(expression, str) and not _is_simple(expression)):
            raise UserError(
                f"{path}: the pattern {literal or expression or ''!r:.200} is none that tokenizers "
                "of this family have, and might take hours"
            )
        taken = len(literal) if isinstance(literal, str) else 1
        growth *= max(1.0, len(str(step.get("content") or "")) / taken)
    if growth > _MAX_GROWTH:
        raise UserError(f"{path}: its replacements make a text {growth:.3g} times as long")


def _steps(told: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, those within sequences too."""
    pending = [told]
    while pending:
        step = pending.pop()
        if step is None:
            continue
        inner = step.get("normalizers") or step.get("pretokenizers")
        if inner:
            pending += inner
        else:
            yield step


def _is_simple(expression: str) -> bool:
    """Whether each alternative of an expression has one repeat at most, and there are no groups."""
    plain = _ONE_CHARACTER.sub("x", expression)
    return "(" not in plain and all(len(_REPEATS.findall(one)) <= 1 for one in plain.split("|"))

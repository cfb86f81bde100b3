"""Puts a source's tokenizer into a converted checkpoint."""

import shutil
from pathlib import Path

from must_jax.convert.bpe import OPENAI_VOCABULARY, write_tokenizer
from must_jax.errors import UserError
from must_jax.models.spec import TextSpec
from must_jax.tokenizer import has_tokenizer, load_tokenizer, tokenizer_files


def check_tokenizer(folder: Path, *, advice: str) -> None:
    """Refuses a folder without a tokenizer.

    Raises:
      UserError: it holds none; `advice` ends the message.
    """
    if not has_tokenizer(folder) and not (folder / OPENAI_VOCABULARY).is_file():
        raise UserError(
            f"{folder}: no tokenizer there, expected tokenizer.json, vocab.json + merges.txt, "
            f"SigLIP's spiece.model, or OpenAI's {OPENAI_VOCABULARY}{advice}"
        )


def put_tokenizer(folder: Path, target: Path, *, spec: TextSpec) -> None:
    """Copies a folder's tokenizer files to `target`, or makes them of OpenAI's vocabulary.

    Raises:
      UserError: the tokenizer is damaged, or doesn't belong to the text tower.
    """
    if has_tokenizer(folder):
        target.mkdir()
        for name in tokenizer_files(folder):
            shutil.copyfile(folder / name, target / name)
    else:
        write_tokenizer(folder / OPENAI_VOCABULARY, target)
    try:
        load_tokenizer(target, spec=spec)
    except UserError as error:
        # The copy is about to vanish: the original is the one to look at.
        raise UserError(str(error).replace(str(target), str(folder))) from error

"""Makes the small CLIP of `assets/digits_clip`: digits in many fonts, with captions, from nothing.

No handwritten digit is among its training pictures. The fonts come from pip:

    pip install --no-deps -r tools/digits/fonts.txt
    python tools/pretrain_digits_clip.py TARGET
"""

import argparse
import pathlib
import sys
import tempfile
import time

# So that the program runs in a checkout that was not installed.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from digits import bpe, captions, export, fonts, model, train

from must_jax.errors import UserError
from must_jax.tokenizer import load_clip_tokenizer

NUM_MERGES = 1000
DEFAULT_STEPS = 1500
DEFAULT_BATCH = 256


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=pathlib.Path, help="folder to write; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--batch-size", type=int, default=DEFAULT_BATCH)
    return parser.parse_args()


def make_clip(target: pathlib.Path, *, seed: int, steps: int, batch_size: int) -> None:
    """Pretrains, then writes the Hugging Face folder `target`, whole or not at all.

    Raises:
      UserError: `target` exists, or a font package is missing.
    """
    if target.exists():
        raise UserError(f"{target} exists already; give a folder that does not, or remove it")
    start = time.monotonic()
    shapes = fonts.draw_shapes(fonts.find_faces(held_out=False))
    unseen = fonts.draw_shapes(fonts.find_faces(held_out=True))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = pathlib.Path(scratch) / target.name
        folder.mkdir()
        bpe.write_tokenizer(
            folder,
            captions.corpus(),
            num_merges=NUM_MERGES,
            context_length=model.CONTEXT_LENGTH,
        )
        tokenizer = load_clip_tokenizer(folder)
        spec, params = train.pretrain(
            tokenizer, shapes, seed=seed, steps=steps, batch_size=batch_size
        )
        export.write_clip(folder, params, spec=spec)
        folder.rename(target)
    print(f"wrote {target} after {time.monotonic() - start:.0f} s")
    for name, limit in [("clean", 0.0), ("varied", 1.0)]:
        accuracy = train.zero_shot_accuracy(
            params, unseen, spec=spec, tokenizer=tokenizer, seed=seed, limit=limit
        )
        print(f"zero-shot accuracy on {name} pictures of unseen fonts: {accuracy:.1%}")


def main() -> int:
    """Runs the program; returns its exit code."""
    arguments = _arguments()
    try:
        make_clip(
            arguments.target,
            seed=arguments.seed,
            steps=arguments.steps,
            batch_size=arguments.batch_size,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

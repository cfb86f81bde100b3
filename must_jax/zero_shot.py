"""The zero-shot classifier: the texts of each class through the text tower, averaged."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from must_jax.errors import UserError
from must_jax.models.layers import l2_normalize
from must_jax.models.spec import ClipSpec
from must_jax.models.text import TextTransformer, pooled_positions
from must_jax.tokenizer import Tokenizer, tokenize

# Small enough for any device, large enough to keep one busy.
BATCH_SIZE = 256


def embedded_batches(
    token_ids: np.ndarray,
    *,
    spec: ClipSpec,
    text_params: Mapping[str, Any],
    batch_size: int = BATCH_SIZE,
) -> Iterator[jax.Array]:
    """Unit-length embeddings (B, E) of token ids (texts, context length), batch after batch.

    B is `batch_size`, or less for the last one. Each is computed when it is asked for.
    """
    length = spec.text.context_length
    if spec.text.is_causal:
        # What follows the end of the longest text changes nothing.
        length = int(pooled_positions(token_ids, spec=spec.text).max()) + 1
    token_ids = token_ids[:, :length]
    text_params = {**text_params, "pos_embed": text_params["pos_embed"][:length]}
    tower = TextTransformer(dataclasses.replace(spec.text, context_length=length), spec.embed_dim)

    @jax.jit
    def encode(params: Mapping[str, Any], ids: jax.Array) -> jax.Array:
        return l2_normalize(jnp.asarray(tower.apply({"params": params}, ids)))

    count = len(token_ids)
    size = min(batch_size, count)
    on_device = jax.tree.map(jnp.asarray, text_params)
    # The last batch is filled up, so that one compiled program serves all.
    padded = np.concatenate([token_ids, np.repeat(token_ids[-1:], -count % size, axis=0)])
    for start in range(0, count, size):
        yield encode(on_device, padded[start : start + size])[: count - start]


def embed_texts(
    token_ids: np.ndarray,
    *,
    spec: ClipSpec,
    text_params: Mapping[str, Any],
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Unit-length embeddings (texts, E) of token ids (texts, context length), float32."""
    # All are under way before the first is waited for.
    batches = list(
        embedded_batches(token_ids, spec=spec, text_params=text_params, batch_size=batch_size)
    )
    return np.concatenate([np.asarray(batch) for batch in batches])


def average_texts(embeddings: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The mean of each class's texts, normalised.

    Args:
      embeddings: (texts, E), unit length, class after class.
      counts: how many of them each of the K classes has, at least one.

    Returns:
      The classifier (E, K), float32.
    """
    starts = np.cumsum(counts) - counts
    means = np.empty((len(counts), embeddings.shape[1]), np.float32)
    for count in set(counts):
        labels = np.flatnonzero(np.equal(counts, count))
        texts = starts[labels, None] + np.arange(count)
        means[labels] = jnp.mean(jnp.asarray(embeddings[texts]), axis=1)
    return np.asarray(l2_normalize(jnp.asarray(means))).T


def build_classifier(
    *,
    spec: ClipSpec,
    text_params: Mapping[str, Any],
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[str]],
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """The zero-shot classifier, one unit-length column a class (Radford et al., 2021, section 3.1).

    Args:
      spec: the checkpoint's architecture.
      text_params: the text tower's parameters.
      tokenizer: the checkpoint's.
      texts: of each of the K classes, from `class_names.class_texts`.
      batch_size: texts encoded at once.

    Returns:
      (E, K), float32.

    Raises:
      UserError: there are no classes, or one has no texts.
    """
    counts = [len(said) for said in texts]
    if not all(counts) or not counts:
        raise UserError("a zero-shot classifier needs at least one class, and a text for each")
    flat = [text for said in texts for text in said]
    ids = tokenize(flat, tokenizer=tokenizer, context_length=spec.text.context_length)
    embeddings = embed_texts(ids, spec=spec, text_params=text_params, batch_size=batch_size)
    return average_texts(embeddings, counts)

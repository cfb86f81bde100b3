"""The zero-shot classifier: class names in prompt templates, through the text tower."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from must_jax.class_names import SLOT
from must_jax.errors import UserError
from must_jax.models.layers import l2_normalize
from must_jax.models.spec import ClipSpec, TextSpec
from must_jax.models.text import TextTransformer
from must_jax.tokenizer import tokenize

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# Small enough for any device, large enough to keep one busy.
BATCH_SIZE = 256


def _end_positions(token_ids: np.ndarray, *, spec: TextSpec) -> np.ndarray:
    if spec.eot_token_id is None:
        return np.argmax(token_ids, axis=-1)
    return np.argmax(token_ids == spec.eot_token_id, axis=-1)


def embed_texts(
    token_ids: np.ndarray,
    *,
    spec: ClipSpec,
    text_params: Mapping[str, Any],
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Unit-length embeddings (texts, E) of token ids (texts, context length), float32."""
    # Attention is causal, so what follows the end of the longest text changes nothing.
    length = int(_end_positions(token_ids, spec=spec.text).max()) + 1
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
    batches = [encode(on_device, padded[i : i + size]) for i in range(0, len(padded), size)]
    return np.concatenate([np.asarray(batch) for batch in batches])[:count]


def average_templates(embeddings: np.ndarray) -> np.ndarray:
    """The classifier (E, K) of unit-length embeddings (K, templates, E): their mean, normalised."""
    return np.asarray(l2_normalize(jnp.mean(jnp.asarray(embeddings), axis=1))).T


def build_classifier(
    *,
    spec: ClipSpec,
    text_params: Mapping[str, Any],
    tokenizer: "CLIPTokenizer",
    class_names: Sequence[str],
    templates: Sequence[str],
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """The zero-shot classifier, one unit-length column a class (Radford et al., 2021, section 3.1).

    Args:
      spec: the checkpoint's architecture.
      text_params: the text tower's parameters.
      tokenizer: the checkpoint's.
      class_names: K names, in the order of the labels.
      templates: prompts with a `{}` each, where the name goes.
      batch_size: texts encoded at once.

    Returns:
      (E, K), float32.

    Raises:
      UserError: there are no names or no templates.
    """
    if not class_names or not templates:
        raise UserError("a zero-shot classifier needs at least one class name and one template")
    texts = [template.replace(SLOT, name) for name in class_names for template in templates]
    ids = tokenize(texts, tokenizer=tokenizer, context_length=spec.text.context_length)
    embeddings = embed_texts(ids, spec=spec, text_params=text_params, batch_size=batch_size)
    return average_templates(embeddings.reshape(len(class_names), len(templates), -1))

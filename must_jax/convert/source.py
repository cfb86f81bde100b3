"""An opened checkpoint of any family, and its parameters as the models here name them."""

import dataclasses
import math
from typing import Any

import numpy as np

from must_jax.convert.layout import Layout, Rule, depths_of
from must_jax.convert.tensors import Tensors
from must_jax.errors import UserError
from must_jax.models.spec import ClipSpec

Params = dict[str, dict]

# Kept as they are: casting them to float32, which loading does, loses nothing.
KEPT_TYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class SourceCheckpoint:
    """What a family's reader gives: the layout, the tensors still in their files, and the spec."""

    layout: Layout
    tensors: Tensors
    spec: ClipSpec


def scalar(tensors: Tensors, key: str, *, where: str) -> float:
    """The one number in a tensor; 0 where it lacks, which `check_fit` then tells.

    Raises:
      UserError: it holds several numbers.
    """
    tensor = tensors.get(key, np.zeros(()))
    if math.prod(tensor.shape) != 1:
        raise UserError(f"{where}: {key} is of shape {tuple(tensor.shape)}, expected one number")
    return float(np.asarray(tensor).item())


def logit_scale(tensors: Tensors, *, where: str) -> float:
    """The factor before the logits, whose logarithm the checkpoint holds.

    Raises:
      UserError: it is no usable number.
    """
    value = scalar(tensors, "logit_scale", where=where)
    # Far beyond the 100 at which CLIP is clipped, the scale is damaged, or overflows.
    if not abs(value) < 20:
        raise UserError(f"{where}: logit_scale is {value}, expected the logarithm of a factor")
    return math.exp(value)


def read_params(checkpoint: SourceCheckpoint, *, where: str) -> Params:
    """The parameters {"vision": ..., "text": ...} of tensors that fit their layout.

    They keep the checkpoint's own floating types. Tensors are read one by one, so that little more
    than the parameters is ever in memory.

    Raises:
      UserError: a tensor is unreadable, or holds anything but finite floating numbers.
    """
    tree: Params = {}
    for rule in checkpoint.layout.rules:
        *parents, leaf = rule.path.split("/")
        node: dict[str, Any] = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = _parameter(rule, checkpoint.tensors, spec=checkpoint.spec, where=where)
    return tree


def source_tensors(params: Params, *, layout: Layout, spec: ClipSpec) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint that `read_params` would read as `params`, bit for bit.

    Args:
      params: {"vision": ..., "text": ...}; what the layout has no name for is left out.
      layout: of the checkpoint.
      spec: the architecture.
    """
    pieces: dict[str, list[np.ndarray]] = {}
    for rule in layout.rules:
        param: Any = params
        for name in rule.path.split("/"):
            param = param[name]
        blocks = param if rule.is_stacked else param[None]
        for block, keys in zip(blocks, rule.keys(depths_of(spec)), strict=True):
            joined = rule.transform.to_source(np.asarray(block), rule.tower(spec))
            for key, rows in zip(keys, np.split(joined, len(keys)), strict=True):
                # Rules that share a tensor stand in the order of its parts.
                pieces.setdefault(key, []).append(rows)
    scalars = {"logit_scale": math.log(spec.logit_scale), "logit_bias": spec.logit_bias}
    return {key: np.ascontiguousarray(np.concatenate(rows)) for key, rows in pieces.items()} | {
        key: np.full(layout.scalar_shape, scalars[key], np.float32) for key in layout.scalars
    }


def _parameter(rule: Rule, tensors: Tensors, *, spec: ClipSpec, where: str) -> np.ndarray:
    blocks = rule.keys(depths_of(spec))
    dtype = _common_type(tensors, [key for keys in blocks for key in keys], where=where)

    def block(keys: tuple[str, ...]) -> np.ndarray:
        sources = [_values(tensors, key, dtype, where=where) for key in keys]
        joined = np.concatenate(sources) if len(sources) > 1 else sources[0]
        return rule.transform.to_param(joined, rule.tower(spec))

    first = block(blocks[0])
    if not rule.is_stacked:
        return np.ascontiguousarray(first, dtype)
    stack = np.empty((len(blocks), *first.shape), dtype)
    stack[0] = first
    for i, keys in enumerate(blocks[1:], start=1):
        stack[i] = block(keys)
    return stack


def _common_type(tensors: Tensors, keys: list[str], *, where: str) -> np.dtype:
    """The keys' type where they share one that is kept, float32 for any other floating types."""
    types = {}
    for key in keys:
        dtype = np.dtype(tensors[key].dtype)
        if dtype.name not in (*KEPT_TYPES, "float64"):
            raise UserError(f"{where}: {key} is of type {dtype}, expected floating numbers")
        types[dtype.name] = dtype
    (name, dtype), *others = types.items()
    return np.dtype(np.float32) if others or name not in KEPT_TYPES else dtype


def _values(tensors: Tensors, key: str, dtype: np.dtype, *, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = np.asarray(tensors[key]).astype(dtype, copy=False)
    if not np.isfinite(values).all():
        raise UserError(f"{where}: {key} holds numbers that are not finite; the file is damaged")
    return values

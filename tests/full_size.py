"""Models of their published sizes with random weights, in the time and memory that tests have."""

import contextlib
import ctypes
import functools
import zlib

import jax
import jax.numpy as jnp
import torch


def fill(model_class, config, *, seed, dtype=torch.float32, **scalars):
    """A model whose every parameter is random, biases and norms included, but for `scalars`.

    The numbers repeat after a prime of them, so that no two rows and no two layers are alike: to
    draw a thousand million takes half a minute.
    """
    with torch.device("meta"):
        model = model_class(config)
    model = model.to(dtype).to_empty(device="cpu")
    normal = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
    scaled = functools.cache(lambda scale: (scale * normal).to(dtype))
    start = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in scalars:
                parameter.fill_(scalars[name])
                continue
            # What keeps numbers of about 1 about 1; of biases and norms, a part of that.
            numbers = scaled(0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5)
            flat = parameter.view(-1)
            while len(flat):
                part = numbers[start : start + len(flat)]
                flat[: len(part)] = part
                flat = flat[len(part) :]
                start = (start + len(part)) % len(numbers)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
        for name, buffer in model.named_buffers():
            assert name.endswith("position_ids")
            buffer.copy_(torch.arange(buffer.shape[-1]))
    return model.eval()


def compute_in_float32(model):
    """Lets a model kept in half precision compute in float32, a layer at a time to save memory."""
    in_half = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    for table in in_half:
        table.register_forward_hook(lambda table, inputs, rows: rows.float())
    for tower in (model.vision_model, model.text_model):
        buffers = {}  # the layers take turns
        for layer in tower.encoder.layers:
            layer.register_forward_pre_hook(functools.partial(_widen, buffers))
            layer.register_forward_hook(_restore)
            in_half.append(layer)
    kept = {id(parameter) for module in in_half for parameter in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.float()


def _widen(buffers, layer, inputs):
    for name, parameter in layer.named_parameters():
        parameter.half = parameter.data
        parameter.data = buffers.setdefault(name, torch.empty(parameter.shape)).copy_(parameter)


def _restore(layer, inputs, outputs):
    for parameter in layer.parameters():
        parameter.data = parameter.half


def give_back_memory():
    """Returns what is free to the system: glibc keeps it below small pieces that are still used."""
    with contextlib.suppress(AttributeError):  # of another C library
        ctypes.CDLL(None).malloc_trim(0)


def onto_device(tower):
    """A tower's parameters as jax arrays; `tower` is emptied, so that they are in memory once.

    What is large stays in the type of the file, and the model casts it, block by block and token by
    token; the rest becomes float32, as loading does to all.
    """
    large = {name: tower.pop(name) for name in ("blocks", "token_embed") if name in tower}
    rest = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tower)
    tower.clear()
    return rest | _moved(large)


def _moved(tree):
    for name in list(tree):
        leaf = tree.pop(name)
        # Waited for, since the array that is copied lives until then.
        tree[name] = _moved(leaf) if isinstance(leaf, dict) else jnp.array(leaf).block_until_ready()
    return tree


def checksums(params):
    """Type, shape and checksum of every parameter: a second copy of them all has no room."""
    return jax.tree.map(lambda leaf: (leaf.dtype.name, leaf.shape, zlib.crc32(leaf)), params)

"""The published implementation's numbers (tests/golden/README.md) in this project's layout."""

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from must_jax.models import VisionSpec, VisionTransformer
from must_jax.optimizer import cosine_schedule, ema_decay_schedule, make_optimizer
from must_jax.state import TrainState, init_state
from must_jax.train_step import Method

FOLDER = pathlib.Path(__file__).parent / "golden"
SPEC = VisionSpec(
    image_size=32,
    patch_size=8,
    width=64,
    depth=2,
    num_heads=1,
    mlp_dim=256,
    activation="quick_gelu",
    layer_norm_eps=1e-5,
)
EMBED_DIM = 32


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of one file, by name."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def to_tree(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Parameters under their published names, without `prefix`, as this project's tree."""
    start = f"{prefix}model.visual."
    source = {key[len(start) :]: a for key, a in arrays.items() if key.startswith(start)}
    width, depth, heads = SPEC.width, SPEC.depth, SPEC.num_heads

    def stacked(name: str, transform: Any = lambda a: a) -> np.ndarray:
        layers = (source[f"transformer.resblocks.{i}.{name}"] for i in range(depth))
        return np.stack([transform(a) for a in layers])

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": source[f"{name}.weight"], "bias": source[f"{name}.bias"]}

    def block_norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": stacked(f"{name}.weight"), "bias": stacked(f"{name}.bias")}

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": stacked(f"{name}.weight", np.transpose), "bias": stacked(f"{name}.bias")}

    heads_shape = (3, heads, width // heads)
    attention = {
        "qkv": {
            "kernel": stacked("attn.in_proj_weight", lambda a: a.T.reshape(width, *heads_shape)),
            "bias": stacked("attn.in_proj_bias", lambda a: a.reshape(heads_shape)),
        },
        "out": {
            "kernel": stacked(
                "attn.out_proj.weight", lambda a: a.T.reshape(heads, width // heads, width)
            ),
            "bias": stacked("attn.out_proj.bias"),
        },
    }
    return {
        "patch_embed": {"kernel": source["conv1.weight"].transpose(2, 3, 1, 0).reshape(-1, width)},
        "class_embed": source["class_embedding"],
        "pos_embed": source["positional_embedding"],
        "mask_token": source["mask_token_embedding"],
        "ln_pre": norm("ln_pre"),
        "blocks": {
            "ln_1": block_norm("ln_1"),
            "attn": attention,
            "ln_2": block_norm("ln_2"),
            "mlp": {"fc1": dense("mlp.c_fc"), "fc2": dense("mlp.c_proj")},
        },
        "ln_post": norm("ln_post"),
        "ln_patch": norm("ln_patch"),
        "proj": source["proj"],
        "classifier": source["classifier"],
        "decoder": {
            "kernel": source["decoder.0.weight"][:, :, 0, 0].T,
            "bias": source["decoder.0.bias"],
        },
    }


def batch(name: str, step: int) -> dict[str, jax.Array]:
    """The batch of a step, as the data pipeline would lay it out."""
    golden = load(f"{name}_main")
    return {
        "image_weak": jnp.asarray(golden["images_weak"][step].transpose(0, 2, 3, 1)),
        "image_strong": jnp.asarray(golden["images_strong"][step].transpose(0, 2, 3, 1)),
        "patch_mask": jnp.asarray(golden["mask"][step].reshape(-1, SPEC.num_patches) == 1),
        "label": jnp.asarray(golden["targets"][step]),
    }


def loss_keywords(
    state: TrainState, keywords: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, Any]:
    """What `compute_losses` takes beside the parameters, the teacher being the state's."""
    model = keywords["model"]
    return {
        "model": model,
        "method": keywords["method"],
        "teacher_logits": model.apply({"params": state.teacher_params}, batch["image_weak"]).logits,
        "images": batch["image_strong"],
        "patch_mask": batch["patch_mask"],
        "previous_log_probs": state.mean_log_probs,
    }


def setup(name: str) -> tuple[TrainState, dict[str, Any]]:
    """The state before step 0, and the keywords of `train_step`."""
    golden = load(f"{name}_main")
    args = json.loads(str(golden["args_json"]))
    config = json.loads(str(golden["train_config_json"]))
    model = VisionTransformer(SPEC, EMBED_DIM, num_classes=args["nb_classes"])
    method = Method(
        confidence_threshold=config["conf_threshold"],
        self_train_weight=1.0,
        fair_weight=config["w_fair"],
        mim_weight=1.0,
        align_weight=config["w_align"],
        num_masked=int(golden["mask"][0, 0].sum()),
        steps_per_epoch=args["steps_per_epoch"],
        # The golden images are normalised already: these leave them as they are.
        image_mean=(0.0,) * 3,
        image_std=(1 / 255,) * 3,
    )
    learning_rate = cosine_schedule(
        learning_rate=args["cfg_lr"],
        min_learning_rate=args["min_lr"],
        batch_size=args["batch"],
        num_steps=args["epochs"] * args["steps_per_epoch"],
    )
    params = jax.tree.map(jnp.asarray, to_tree(golden, "init/"))
    optimizer = make_optimizer(
        params,
        schedule=learning_rate,
        weight_decay=args["weight_decay"],
        layer_decay=args["layer_decay"],
    )
    keywords = {
        "model": model,
        "method": method,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "ema_decay": ema_decay_schedule(
            initial=args["ema_init"], final=args["ema_decay"], warmup_steps=args["warm_it"]
        ),
    }
    return init_state(params, optimizer=optimizer), keywords

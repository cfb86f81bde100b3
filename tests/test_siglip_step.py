"""MUST's step on a SigLIP: against torch, over eight devices, and as a whole run."""

import functools
import json

import golden_numbers as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
import torch
from siglip_checkpoints import TINY, make_siglip, save_siglip

from must_jax import sharding
from must_jax.convert import convert, siglip
from must_jax.convert.conversion import read_checkpoint
from must_jax.models import VisionTransformer
from must_jax.optimizer import make_optimizer
from must_jax.state import init_state, init_student
from must_jax.train import train
from must_jax.train_step import compute_losses, train_step

NUM_CLASSES, SCALE = 10, 30.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A torch SigLIP of the golden runs' image size, and the same converted."""
    vision = TINY["vision"] | {"image_size": 32, "patch_size": 8}
    model = make_siglip(vision=vision, text=TINY["text"])
    source = save_siglip(model, tmp_path_factory.mktemp("siglip"))
    spec, _, params = read_checkpoint(source, activation=None)
    return model, spec, params


@pytest.fixture(scope="module")
def setup(checkpoint):
    """The golden run's batch and constants, with the SigLIP as the model."""
    _, spec, params = checkpoint
    model = VisionTransformer(
        spec.vision, spec.embed_dim, num_classes=NUM_CLASSES, logit_scale=SCALE
    )
    classifier = jax.random.normal(jax.random.key(0), (spec.embed_dim, NUM_CLASSES))
    classifier = classifier / jnp.linalg.norm(classifier, axis=0, keepdims=True)
    vision = jax.tree.map(jnp.asarray, params["vision"])
    student = init_student(model, vision, classifier, jax.random.key(1))
    # Away from 1 and 0, where a norm that is left out would not be seen.
    student["ln_patch"] = {"scale": jnp.full(48, 0.7), "bias": jnp.full(48, 0.2)}
    _, keywords = golden.setup("k10")
    optimizer = make_optimizer(
        student, schedule=keywords["learning_rate"], weight_decay=0.05, layer_decay=0.65
    )
    return student, keywords | {"model": model, "optimizer": optimizer}, golden.batch("k10", 0)


def gradients(params, batch, *, keywords):
    teacher = keywords["model"].apply({"params": params}, batch["image_weak"])
    return jax.grad(compute_losses, has_aux=True)(
        params,
        model=keywords["model"],
        method=keywords["method"],
        teacher_logits=teacher.logits,
        images=batch["image_strong"],
        patch_mask=batch["patch_mask"],
        previous_log_probs=jnp.zeros(NUM_CLASSES),
    )


def torch_losses(model, student, batch, *, method):
    """The same on transformers' modules; the fresh parameters are leaves with gradients."""
    tower = model.vision_model

    def tensor(x):
        return torch.tensor(np.asarray(x), requires_grad=True)

    fresh = {
        "mask_token": tensor(student["mask_token"]),
        "ln_patch/scale": tensor(student["ln_patch"]["scale"]),
        "ln_patch/bias": tensor(student["ln_patch"]["bias"]),
        "decoder/kernel": tensor(student["decoder"]["kernel"]),
        "decoder/bias": tensor(student["decoder"]["bias"]),
        "classifier": tensor(student["classifier"]),
    }
    weak, strong = (
        torch.tensor(np.asarray(batch[name])).permute(0, 3, 1, 2)
        for name in ("image_weak", "image_strong")
    )
    mask = torch.tensor(np.asarray(batch["patch_mask"]))

    def classify(pooled):
        embed = torch.nn.functional.normalize(pooled, dim=-1)
        return embed, SCALE * embed @ fresh["classifier"]

    with torch.no_grad():
        confidence, labels = classify(tower(weak).pooler_output)[1].softmax(-1).max(-1)
    confident = confidence > method.confidence_threshold
    assert 0 < confident.sum() < len(confident)

    patches = tower.embeddings.patch_embedding(strong).flatten(2).transpose(1, 2)
    patches = torch.where(mask[..., None], fresh["mask_token"], patches)
    tokens = patches + tower.embeddings.position_embedding.weight
    tokens = tower.encoder(inputs_embeds=tokens).last_hidden_state
    image_embed, logits = classify(tower.head(tower.post_layernorm(tokens)))
    normed = torch.nn.functional.layer_norm(
        tokens, (48,), fresh["ln_patch/scale"], fresh["ln_patch/bias"], eps=1e-6
    )
    count = normed.shape[1]
    # Pooled one by one, as images of a single patch.
    alone = tower.head(normed.reshape(-1, 1, 48)).reshape(len(normed), count, 48)
    patch_embeds = torch.nn.functional.normalize(alone, dim=-1)
    decoded = normed @ fresh["decoder/kernel"] + fresh["decoder/bias"]
    pixels = torch.nn.functional.pixel_shuffle(
        decoded.transpose(1, 2).reshape(len(normed), -1, 4, 4), 8
    )
    hidden = mask.reshape(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)

    distance = (patch_embeds - image_embed[:, None]).square().sum(-1)
    losses = {
        "loss_self_train": torch.nn.functional.cross_entropy(logits[confident], labels[confident]),
        "loss_fair": -logits.softmax(-1).mean(0).log().mean(),
        "loss_mim": ((pixels - strong).abs() * hidden).sum() / (3 * hidden.sum()),
        "loss_align": distance[mask].mean(),
    }
    weights = (1.0, method.fair_weight, 1.0, method.align_weight)
    sum(w * loss for w, loss in zip(weights, losses.values(), strict=True)).backward()
    return losses, fresh


@pytest.mark.parity
def test_losses_and_gradients_are_those_of_torch(checkpoint, setup):
    model, spec, _ = checkpoint
    student, keywords, batch = setup
    grads, (_, metrics) = jax.jit(functools.partial(gradients, keywords=keywords))(student, batch)
    losses, fresh = torch_losses(model, student, batch, method=keywords["method"])
    for name, loss in losses.items():
        # Sums of some thousand float32 terms of one sign.
        np.testing.assert_allclose(metrics[name], loss.item(), rtol=2e-5, err_msg=name)

    theirs = {name: tensor.grad.numpy() for name, tensor in fresh.items()}
    sources = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    depths = {"vision": spec.vision.depth, "text": spec.text.depth}
    for rule in siglip.LAYOUT.rules:
        if rule.path.startswith("vision/"):
            # A gradient moves into this layout as its parameter does.
            layers = [
                rule.transform.to_param(np.concatenate([sources[key] for key in keys]), spec.vision)
                for keys in rule.keys(depths)
            ]
            path = rule.path.removeprefix("vision/")
            theirs[path] = np.stack(layers) if rule.is_stacked else layers[0]
    ours = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(grads)
    }
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        if name.endswith("key/bias"):
            # It adds the same to all attention logits: no gradient, but for rounding.
            assert np.abs(expected).max() < 1e-5
            continue
        assert np.abs(expected).max() > 0, name
        # Rounding of a few float32 units of the largest entry, through two layers and back.
        np.testing.assert_allclose(
            ours[name], expected, rtol=0, atol=5e-5 * np.abs(expected).max(), err_msg=name
        )


def test_eight_devices_do_the_step_of_one(setup):
    student, keywords, batch = setup
    results = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        state = sharding.replicate(init_state(student, optimizer=keywords["optimizer"]), mesh)
        placed = sharding.to_mesh(jax.device_get(batch), mesh)
        step = jax.jit(
            functools.partial(train_step, **keywords), out_shardings=sharding.replicated(mesh)
        )
        results.append(jax.device_get(step(state, placed)[1]))
    for name, expected in results[0].items():
        assert np.isfinite(expected)
        # Sums over the batch come in another order.
        np.testing.assert_allclose(results[1][name], expected, rtol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tiny_run.write_all(tmp_path_factory.mktemp("inputs"))
    save_siglip(make_siglip(**TINY), folder / "source")
    convert(folder / "source", folder / "siglip")
    return folder


@pytest.mark.slow
def test_a_run_from_checkpoint_to_result(inputs, tmp_path):
    config = tiny_run.config(inputs)
    config.checkpoint = str(inputs / "siglip")
    # Not the checkpoint's 16, so that the position embeddings are resampled.
    config.image_size = 24
    config.epochs = 1
    result = train(config, str(tmp_path / "run"))
    assert result["steps"] == 4
    assert 0 <= result["teacher_top1"] <= 1
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [value for line in lines for key, value in line.items() if "loss" in key]
    assert len(losses) >= 10
    assert np.isfinite(losses).all()

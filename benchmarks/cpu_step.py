"""The whole training step on CPU beside PyTorch's: ViT-B/16 at 224, batch 4, float32, two threads.

    python benchmarks/cpu_step.py

PyTorch does the same on transformers' CLIP image tower: teacher and student forward, the four
losses, backward, AdamW and moving average; eager, and with torch.compile where it works. The sides
run in turns, in processes of their own; the data pipeline is in none.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

THREADS, BATCH, NUM_CLASSES = 2, 4, 1000
ROUNDS, STEPS = 2, 4


def timed(step: Callable[[], Any]) -> list[float]:
    """Seconds of steps, the first ones, which compile and touch memory, left out."""
    seconds = []
    for _ in range(STEPS + 2):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return seconds[2:]


def run_jax() -> list[float]:
    """This project's step, as it runs by default."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import functools

    import jax
    import step_time

    from must_jax import sharding
    from must_jax.compile import first_state, jit_train_step
    from must_jax.state import init_params, init_state

    configuration = step_time.CONFIGURATIONS["vit_b16"]
    experiment = step_time.load_experiment(configuration, batch_size=BATCH, dtype="float32")
    mesh = sharding.make_mesh()
    params = jax.jit(functools.partial(init_params, experiment.model))(jax.random.key(0))
    keywords = experiment.step_keywords(params, steps_per_epoch=10_000)
    init = functools.partial(init_state, optimizer=keywords["optimizer"])
    batch = sharding.to_mesh(step_time.random_batch(experiment), mesh)
    step = jit_train_step(mesh, params, **keywords)
    holder = [first_state(mesh, params, init=init)]

    def once() -> None:
        holder[0], _ = step(holder[0], batch)
        jax.block_until_ready(holder[0])

    return timed(once)


def run_torch(*, compiled: bool) -> list[float]:
    """The same by PyTorch."""
    import copy

    import torch
    from torch.nn import functional as F
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    width, patch, embed, side = 768, 16, 512, 14

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = CLIPVisionConfig(patch_size=patch, attn_implementation="sdpa")
            vision = CLIPVisionModel(config)
            self.tower = getattr(vision, "vision_model", vision)
            self.mask_token = torch.nn.Parameter(torch.randn(width) * 0.02)
            self.norm = torch.nn.LayerNorm(width)
            self.proj = torch.nn.Linear(width, embed, bias=False)
            self.classifier = torch.nn.Linear(embed, NUM_CLASSES, bias=False)
            self.decoder = torch.nn.Linear(width, 3 * patch**2)

        def forward(self, images: Any, mask: Any = None) -> Any:
            tower = self.tower
            x = tower.embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
            if mask is not None:
                x = torch.where(mask[..., None], self.mask_token, x)
            start = tower.embeddings.class_embedding.expand(len(x), 1, -1)
            x = torch.cat([start, x], 1) + tower.embeddings.position_embedding.weight
            x = tower.pre_layrnorm(x)
            for layer in tower.encoder.layers:
                x = layer(x, None)
                x = x[0] if isinstance(x, tuple) else x
            image = F.normalize(self.proj(tower.post_layernorm(x[:, 0])), dim=-1)
            logits = 100 * self.classifier(image)
            if mask is None:
                return logits
            x = self.norm(x[:, 1:])
            return logits, image, F.normalize(self.proj(x), dim=-1), self.decoder(x)

    student = Model()
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, weight_decay=0.05)
    weak, strong = torch.randn(2, BATCH, 3, 224, 224)
    mask = torch.rand(BATCH, side * side).argsort(1) < 60
    forward_student = torch.compile(student) if compiled else student
    forward_teacher = torch.compile(teacher) if compiled else teacher

    def once() -> None:
        with torch.no_grad():
            confidence, labels = forward_teacher(weak).softmax(-1).max(-1)
            confident = (confidence > 0.7).float()
        logits, image, patches, pixels = forward_student(strong, mask)
        losses = F.cross_entropy(logits, labels, reduction="none") * confident
        loss = losses.sum() / confident.sum().clamp(min=1)
        loss = loss - (logits.log_softmax(-1).logsumexp(0) - torch.log(torch.tensor(4.0))).mean()
        target = strong.unfold(2, patch, patch).unfold(3, patch, patch)
        target = target.permute(0, 2, 3, 1, 4, 5).reshape(pixels.shape)
        loss = loss + (pixels - target).abs()[mask].mean()
        loss = loss + 0.2 * (patches - image[:, None]).square().sum(-1)[mask].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 0.001)

    return timed(once)


SIDES = {
    "must_jax": run_jax,
    "torch eager": lambda: run_torch(compiled=False),
    "torch.compile": lambda: run_torch(compiled=True),
}


def main() -> None:
    """Runs the sides in turns, and prints medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(SIDES[args.side]()))
        return
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    for _ in range(ROUNDS):
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                print(f"{side} did not run: {done.stderr.strip().splitlines()[-1]}")
                continue
            seconds[side] += json.loads(done.stdout.splitlines()[-1])
    medians = {side: statistics.median(values) for side, values in seconds.items() if values}
    for side, median in medians.items():
        told = f"{min(seconds[side]):.2f} to {max(seconds[side]):.2f}"
        print(f"{side:14} {median:6.2f} s a step of {BATCH} ({told})")
    ours = medians.pop("must_jax")
    print(f"faster peer / must_jax: {min(medians.values()) / ours:.2f}x, at least 1.2x wanted")


if __name__ == "__main__":
    main()

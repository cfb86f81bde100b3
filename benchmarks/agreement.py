"""Whether what a finished run gives out says what its evaluation says, image by image.

    python benchmarks/agreement.py --workdir runs/digits

Classifies the labelled test images with the teacher four times: as the trainer evaluates, by
`--mode=predict`, by the serving artifact in a new process, and by transformers in PyTorch from the
exported Hugging Face folder and the image files. Needs what the tests need.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

from must_jax import sharding
from must_jax.config import read_config
from must_jax.experiment import Experiment, build
from must_jax.exporting.runner import export_run
from must_jax.models import encode
from must_jax.predict import Request, predict
from must_jax.resume import CONFIG_FILE, read_state
from must_jax.train_step import normalize

SERVE = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from classifier import Classifier
np.save("logits.npy", Classifier().run(np.load("views.npy"))["logits"])
"""


def evaluate(experiment: Experiment, workdir: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the N test images, their views (N, R, R, 3) and the trainer's logits (N, K)."""
    mesh, spec = experiment.make_mesh(), experiment.spec
    params = read_state(experiment, workdir, mesh=mesh).state.teacher_params

    @jax.jit
    def classify(params, images):
        images = normalize(images, mean=spec.image_mean, std=spec.image_std)
        return encode(experiment.model, params, images).logits

    source = experiment.test_source()
    if source is None:
        raise SystemExit("the run's config.dataset.test is empty")
    views, logits = [], []
    with experiment.eval_batches(source, mesh=mesh) as batches:
        for batch in batches:
            on_mesh = sharding.to_mesh({"image": batch["image"]}, mesh)["image"]
            views.append(batch["image"][batch["valid"]])
            logits.append(np.asarray(classify(params, on_mesh))[batch["valid"]])
    names = [source.name_of(record) for record in range(len(source))]
    return names, np.concatenate(views), np.concatenate(logits)


def transformers_logits(folder: pathlib.Path, paths: list[str]) -> np.ndarray:
    """Logits (N, K) of image files."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoModel, CLIPImageProcessorPil

    model = AutoModel.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    images = [Image.open(path).convert("RGB") for path in paths]
    with torch.no_grad():
        embedding = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
    scale = json.loads((folder / "classifier.json").read_text())["logit_scale"]
    classifier = load_file(folder / "classifier.safetensors")["classifier"]
    return (scale * torch.nn.functional.normalize(embedding, dim=-1) @ classifier).numpy()


def main() -> None:
    """Prints a line an output."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="of a finished run")
    args = parser.parse_args()
    config = read_config(pathlib.Path(args.workdir) / CONFIG_FILE)
    experiment = build(config)
    names, views, logits = evaluate(experiment, args.workdir)
    classes = [experiment.classes.names[label] for label in logits.argmax(1)]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = pathlib.Path(temporary)
        file = scratch / "rows.jsonl"
        request = Request(images=config.dataset.test, output=str(file), top_k=1)
        predict(config, args.workdir, request=request)
        for format in ("serving", "hugging_face"):
            export_run(config, args.workdir, scratch / format, format=format)
        np.save(scratch / "views.npy", views)
        command = [sys.executable, "-c", SERVE, str(scratch / "serving")]
        subprocess.run(command, cwd=scratch, check=True)
        served = np.load(scratch / "logits.npy")
        exported = transformers_logits(scratch / "hugging_face", names)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    print(f"\n{len(names)} images, logits up to {np.abs(logits).max():.0f}")
    assert [row["path"] for row in rows] == names
    likely = np.asarray(jax.nn.softmax(logits)).max(1)
    told = np.array([row["probability_1"] for row in rows])
    others = sum(row["class_1"] != name for row, name in zip(rows, classes, strict=True))
    print(
        f"predict: {others} of another class, probabilities within {abs(told - likely).max():.2g}"
    )
    for what, found in (("serving", served), ("transformers", exported)):
        others = np.sum(found.argmax(1) != logits.argmax(1))
        print(f"{what}: {others} of another class, logits within {abs(found - logits).max():.2g}")


if __name__ == "__main__":
    main()

"""A run as one program: what the trainer's evaluation gives, elsewhere and without the trainer."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.error
import urllib.request

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_run
from exported_runs import SIGLIP, evaluation_logits, make_run, tower_of
from PIL import Image

from must_jax import sharding
from must_jax.config import read_config
from must_jax.errors import UserError
from must_jax.experiment import build
from must_jax.exporting import serving
from must_jax.exporting.finished import load_finished
from must_jax.exporting.runner import export_run
from must_jax.exporting.weights import KINDS, SCALE, pack
from must_jax.models import encode
from must_jax.resume import CONFIG_FILE, read_state
from must_jax.train import train
from must_jax.train_step import normalize

ROOT = pathlib.Path(__file__).parents[1]
FORBIDDEN = ("must_jax", "flax", "orbax", "safetensors", "torch", "transformers", "PIL")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, its config and its result."""
    folder = tiny_run.write_all(tmp_path_factory.mktemp("inputs"))
    config = tiny_run.config(folder)
    return folder / "run", config, train(config, str(folder / "run"))


@pytest.fixture(scope="module")
def artifact(finished, tmp_path_factory):
    workdir, _, _ = finished
    target = tmp_path_factory.mktemp("exports") / "serving"
    export_run(read_config(workdir / CONFIG_FILE), str(workdir), target, format="serving")
    return target


@pytest.fixture(scope="module")
def evaluated(finished):
    """Views (B, R, R, 3), labels (B,) and logits (B, K) of the trainer's evaluation, by tree."""
    workdir, config, _ = finished
    experiment = build(config)
    mesh = experiment.make_mesh()
    state = read_state(experiment, str(workdir), mesh=mesh).state
    spec = experiment.spec

    @jax.jit
    def logits(params, images):
        # The same as `eval_step.count_right`, which gives no logits away.
        images = normalize(images, mean=spec.image_mean, std=spec.image_std)
        return encode(experiment.model, params, images).logits

    views, labels, found = [], [], {"teacher": [], "student": []}
    with experiment.eval_batches(experiment.test_source(), mesh=mesh) as batches:
        for batch in batches:
            on_mesh = sharding.to_mesh({"image": batch["image"]}, mesh)["image"]
            valid = batch["valid"]
            views.append(batch["image"][valid])
            labels.append(batch["label"][valid])
            for tree, params in (("teacher", state.teacher_params), ("student", state.params)):
                found[tree].append(np.asarray(logits(params, on_mesh))[valid])
    return (
        np.concatenate(views),
        np.concatenate(labels),
        jax.tree.map(np.concatenate, found, is_leaf=lambda leaf: isinstance(leaf, list)),
    )


def python(code, *arguments, cwd):
    """Runs code where nothing of the trainer can be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({FORBIDDEN}))\n"
    command = [sys.executable, "-c", block + code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


RUN = """
import numpy as np
sys.path.insert(0, sys.argv[1])
from classifier import Classifier
classifier = Classifier()
np.save(sys.argv[3], classifier.run(np.load(sys.argv[2]))["logits"])
rows = classifier([np.zeros((5, 9, 3), np.uint8), np.full((40, 20, 3), 200, np.uint8)])
assert rows.shape == (2, len(classifier.names)) and np.allclose(rows.sum(1), 1, atol=1e-6)
"""


@pytest.mark.multiprocess
def test_other_processes_give_the_logits_of_the_evaluation(finished, artifact, evaluated, tmp_path):
    views, labels, logits = evaluated
    np.save(tmp_path / "views.npy", views)
    for name in ("one.npy", "two.npy"):
        python(RUN, artifact, "views.npy", name, cwd=tmp_path)
    one, two = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    np.testing.assert_array_equal(one, two)
    # The same products in float32, summed in another order for another batch size.
    np.testing.assert_allclose(one, logits["teacher"], rtol=0, atol=2e-4)
    assert np.abs(logits["teacher"] - logits["student"]).max() > 0.01
    np.testing.assert_array_equal(one.argmax(1), logits["teacher"].argmax(1))
    assert np.mean(one.argmax(1) == labels) == pytest.approx(finished[2]["teacher_top1"])


@pytest.mark.multiprocess
def test_the_loader_in_the_docs(artifact, evaluated, tmp_path):
    page = (ROOT / "docs" / "serving.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (code,) = (block for block in blocks if "jax.export" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    views, _, logits = evaluated
    np.save(tmp_path / "views.npy", views)
    code = code.replace("exports/digits", str(artifact))
    code, count = re.subn(
        r"^images = .*", "images = np.load('views.npy')", code, flags=re.MULTILINE
    )
    assert count == 1
    shown = "\nprint(json.dumps([names, np.asarray(probabilities).tolist()]))"
    names, rows = json.loads(python(code + shown, cwd=tmp_path).splitlines()[-1])
    assert tuple(names) == tiny_run.CLASSES
    expected = np.asarray(jax.nn.softmax(logits["teacher"]))
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-4)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("missing", "arguments", "told"),
    [
        ("flatbuffers", (), "JAX reads programs by flatbuffers: pip install flatbuffers"),
        ("PIL", ("classifier.py",), "files are decoded by Pillow: pip install pillow"),
        ("nothing", ("classifier.py",), "classifier.py is not a readable image"),
    ],
)
def test_what_the_loader_misses_is_told_in_one_line(artifact, missing, arguments, told):
    code = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "classifier.py", *arguments]
    done = subprocess.run(command, cwd=artifact, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {told}\n")


def test_choices(finished, artifact, evaluated, tmp_path):
    workdir, config, _ = finished
    views, _, logits = evaluated
    about = json.loads((artifact / "classifier.json").read_text())
    assert about["tree"] == "teacher"
    # Neither paths of this machine nor what depends on them.
    assert b".py" not in (artifact / "program.bin").read_bytes()
    assert (about["weights"], about["dtype"]) == ("float32", "float32")
    options = {"tree": "student", "weights": "bfloat16", "dtype": "bfloat16"}
    run = export_run(config, str(workdir), tmp_path / "x", format="serving", **options)
    about = json.loads((tmp_path / "x" / "classifier.json").read_text())
    assert {name: about[name] for name in options} == options
    program = jax.export.deserialize(bytearray((tmp_path / "x" / "program.bin").read_bytes()))
    with np.load(tmp_path / "x" / "weights.npz") as weights:
        found = jax.jit(program.call)(dict(weights), views)["logits"]
    # The run's model with the student's parameters, told to compute in bfloat16.
    model = run.model.clone(dtype=jax.numpy.bfloat16)
    expected = evaluation_logits(dataclasses.replace(run, model=model), views)
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found - logits["student"]).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_programs_of_a_siglip_run_everywhere(kind, tmp_path):
    run = make_run(SIGLIP, tmp_path / "tokenizer")
    packed = pack(tower_of(run), kind=kind)
    program = serving.make_program(run, packed, dtype="float32")
    assert program.platforms == ("cpu", "cuda", "tpu")
    # Calls into a library would tie the program to that of one platform, or one version.
    assert set(re.findall(r"custom_call @(\w+)", program.mlir_module())) == {"shape_assertion"}
    tower = {
        name: array.view(ml_dtypes.bfloat16) if array.dtype == np.uint16 else array
        for name, array in packed.items()
    }
    scaled = {
        name: tower[name] * tower.pop(name + SCALE) for name in list(tower) if name + SCALE in tower
    }
    tower = flax.traverse_util.unflatten_dict(tower | scaled, sep="/")
    classifier = tower.pop("classifier")
    same = dataclasses.replace(run, params={"vision": tower}, classifier=classifier)
    for batch in (1, 3):
        views = np.random.default_rng(0).integers(0, 256, (batch, 16, 16, 3), np.uint8)
        found = jax.jit(program.call)(packed, views)
        # float32 in another order: 1e-6 of logits of a hundred.
        expected = evaluation_logits(same, views)
        np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=5e-4)
        probabilities = np.exp(found["logits"] - found["logits"].max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        np.testing.assert_allclose(found["probabilities"], probabilities, rtol=0, atol=1e-6)


def test_bfloat16_weights_are_what_a_bfloat16_run_uses_anyway(tmp_path):
    run = make_run(tiny_run.SPEC, tmp_path / "tokenizer")
    views = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    tower = tower_of(run)
    found = []
    for kind in ("float32", "bfloat16"):
        packed = pack(tower, kind=kind)
        program = serving.make_program(run, packed, dtype="bfloat16")
        found.append(jax.jit(program.call)(packed, views)["logits"])
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_program_compiles_for_a_tpu_that_is_not_here(artifact):
    code = """
import sys, jax, numpy as np
from must_jax.planning.topology import open_topology
device = open_topology("v5e:2x2").devices[0]
on = jax.sharding.SingleDeviceSharding(device)
program = jax.export.deserialize(bytearray(open(sys.argv[1] + "/program.bin", "rb").read()))
shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on)
          for name, a in np.load(sys.argv[1] + "/weights.npz").items()}
images = jax.ShapeDtypeStruct((4, 16, 16, 3), np.uint8, sharding=on)
compiled = jax.jit(program.call).lower(shapes, images).compile()
print(compiled.memory_analysis().argument_size_in_bytes)
"""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(artifact)],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_refusals(finished, artifact, tmp_path):
    workdir, config, _ = finished

    def refused(target, **options):
        with pytest.raises(UserError) as error:
            export_run(config, str(workdir), target, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "exists already" in refused(artifact, format="serving")
    (tmp_path / "mine").mkdir()
    told = refused(tmp_path / "mine", format="serving", overwrite=True)
    assert "is no export, so it will not be overwritten" in told
    assert "of --format=serving" in refused(tmp_path / "x", format="open_clip", weights="int8")
    told = refused(tmp_path / "x", format="openai")
    assert "heads of the image tower 2, expected 0" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    with pytest.raises(UserError, match="no complete checkpoint"):
        export_run(config, str(tmp_path / "none"), tmp_path / "x", format="serving")


def test_an_export_is_replaced_on_request(finished, tmp_path):
    workdir, config, _ = finished
    for format in ("serving", "hugging_face"):
        export_run(config, str(workdir), tmp_path / "x", format=format, overwrite=True)
    names = {path.name for path in (tmp_path / "x").iterdir()}
    assert {"config.json", "classifier.safetensors"} <= names
    assert "program.bin" not in names


def test_the_mesh_of_the_run_does_not_matter(finished):
    workdir, config, _ = finished
    elsewhere = config.copy_and_resolve_references()
    elsewhere.mesh.fsdp = 64
    run = load_finished(build(elsewhere), str(workdir), tree="teacher")
    assert run.step == 8


@pytest.mark.slow
@pytest.mark.multiprocess
def test_command(finished, tmp_path):
    workdir, _, _ = finished
    command = [sys.executable, "-m", "must_jax.export", f"--workdir={workdir}"]

    def export(*flags):
        done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    target = f"--target={tmp_path / 'x'}"
    code, told = export(target, "--format=serving", "--weights=bfloat16", "--dtype=bfloat16")
    assert code == 0, told
    assert "serving: teacher of step 8, 3 classes, image size 16" in told
    code, told = export(target)
    assert (code, told.splitlines()[-1]) == (2, "error: --format is missing; try --help")
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_http_service(artifact, tmp_path):
    Image.fromarray(np.full((30, 20, 3), 77, np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    command = [sys.executable, ROOT / "examples" / "http_service.py", artifact, "--port=0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+", process.stdout.readline())[0]
            with urllib.request.urlopen(urllib.request.Request(url, data=data)) as reply:
                found = json.load(reply)["predictions"]
            with urllib.request.urlopen(url) as reply:
                assert json.load(reply) == {"classes": list(tiny_run.CLASSES)}
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(urllib.request.Request(url, data=b"no image"))
            assert error.value.code == 400
        finally:
            process.kill()
    told = subprocess.run(
        [sys.executable, artifact / "classifier.py", tmp_path / "a.png"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {each["name"] for each in found} == set(tiny_run.CLASSES)
    assert sum(each["probability"] for each in found) == pytest.approx(1, abs=1e-6)
    first = found[0]
    assert f"a.png: {first['name']} {first['probability']:.4f}" in told

"""The layers of the package: imports point downwards only, and training needs no torch."""

import ast
import pathlib
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parents[1] / "must_jax"

# From the top down; a module may import what stands on a later line.
LAYERS = [
    {"plan", "export"},
    {"main"},
    {"planning", "exporting"},
    {"train", "score", "replay", "predict"},
    {"reporting"},
    {"inspection"},
    {"resume", "saving", "nonfinite", "judge", "results", "workdir_lock"},
    {"probe"},
    {"predictor"},
    {"evaluate"},
    {"failed_images", "source_digest"},
    {"experiment", "progress", "compile", "predictions", "profiling"},
    {"eval_step"},
    {"train_step", "zero_shot", "checkpoint_writer"},
    {"state", "checkpoint", "flops", "run_notes"},
    {"noted"},
    {"convert", "tokenizer"},
    {
        "models",
        "data",
        "losses",
        "optimizer",
        "metrics",
        "quality",
        "scores",
        "pages",
        "recipes",
        "telemetry",
        "tokenizer_pipeline",
    },
    {"sharding", "compile_cache"},
    {"preemption", "tensorboard", "chips", "step_timer"},
    {"config", "class_names", "distributed"},
    {"cluster", "lifelines"},
    {"local_files"},
    {"errors"},
]
# Within a layer: what may import what.
ALLOWED = {("state", "checkpoint"), ("checkpoint", "state"), ("convert", "tokenizer")}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts == ["must_jax"]:
                yield from (alias.name for alias in node.names)
            elif parts[0] == "must_jax":
                yield parts[1]
            assert node.level == 0, path
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("must_jax."):
                    yield alias.name.split(".")[1]


def test_imports_point_downwards():
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module == "__init__":
            continue
        for imported in set(imports_of(path)) - {module}:
            fine = rank[imported] > rank[module] or (module, imported) in ALLOWED
            assert fine, f"{path.name} imports {imported}"


def test_only_train_and_what_builds_it_read_the_config():
    readers = {
        path.stem
        for path in PACKAGE.rglob("*.py")
        if "ConfigDict" in path.read_text() or "config_flags" in path.read_text()
    }
    assert readers == {
        "config",
        "experiment",
        "main",
        "predict",
        "recipes",
        "replay",
        "resume",
        "runner",
        "score",
        "shapes",
        "train",
    }


def test_training_needs_neither_torch_nor_tensorflow():
    # None in sys.modules makes an import fail, as it does where the package is not installed.
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'tensorflow', 'timm', 'sklearn']));"
        "import must_jax.main; print('imported')"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "imported\n", process.stderr


def test_what_few_runs_need_is_not_imported_by_all():
    slow = ["fsspec", "pyarrow", "sentencepiece", "tensorflow_datasets"]
    code = f"import sys, must_jax.main;print([name for name in {slow} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "[]\n", process.stderr

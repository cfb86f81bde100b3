"""Writes the class names and prompt templates in must_jax/assets from the packages they come from.

    pip install --no-deps tensorflow-datasets==4.9.10 clip-benchmark==1.6.2
    python tools/make_benchmark_names.py [FOLDER]

Nothing of either package is imported, only files that lie in them are read, so neither's
dependencies are needed. `must_jax/assets/README.md` says what comes from where.
"""

import ast
import importlib.util
import json
import pathlib
import re
import sys

ASSETS = pathlib.Path(__file__).parents[1] / "must_jax" / "assets"

# Two of ImageNet's names stand for two classes each: WordNet's own name replaces one of a pair.
RENAMED_WORDNET_IDS = {"n04008634": "projectile", "n04355933": "sunglass"}
# The one class that CLIP writes unlike UCF101's own list does.
UCF101_RENAMED = {"Handstand Pushups": "Hand Stand Pushups"}

Classes = list[tuple[str, str]]


def package(name: str) -> pathlib.Path:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: {name} is not installed; see {pathlib.Path(__file__).name}")
    return pathlib.Path(spec.submodule_search_locations[0])


def clip_json(name: str) -> dict[str, list[str]]:
    """A file of clip_benchmark, English."""
    path = package("clip_benchmark") / "datasets" / f"en_{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def tfds_labels(path: str) -> list[str]:
    """A data set's labels in their order."""
    return (package("tensorflow_datasets") / path).read_text(encoding="utf-8").split("\n")[:-1]


def imagenet() -> Classes:
    """Labels are the sorted WordNet ids; the names are CLIP's, in that order."""
    folders = tfds_labels("datasets/imagenet2012/labels.txt")
    names = clip_json("classnames")["imagenet1k"]
    return [
        (folder, RENAMED_WORDNET_IDS.get(folder, name))
        for folder, name in zip(folders, names, strict=True)
    ]


def sun397() -> Classes:
    """`/c/car_interior/backseat` is "car interior backseat"."""
    labels = tfds_labels("image_classification/sun397_labels.txt")
    return [(label, re.sub("[_/]", " ", label[len("/a/") :])) for label in labels]


def food101() -> Classes:
    """`apple_pie` is "apple pie"."""
    labels = tfds_labels("image_classification/food-101_classes.txt")
    return [(label, label.replace("_", " ")) for label in labels]


def gtsrb() -> Classes:
    """Labels are the numbers of the classes, which name their folders; the names are CLIP's."""
    return [(f"{i:05}", name) for i, name in enumerate(clip_json("classnames")["gtsrb"])]


def dtd() -> Classes:
    """A label is its name, hyphens included."""
    return [(label, label) for label in tfds_labels("image_classification/dtd_key_attributes.txt")]


def ucf101() -> Classes:
    """`ApplyEyeMakeup` is "Apply Eye Makeup"."""
    names = [
        (label, re.sub("(?<=.)(?=[A-Z])", " ", label))
        for label in tfds_labels("video/ucf101_labels.txt")
    ]
    return [(label, UCF101_RENAMED.get(name, name)) for label, name in names]


def pets() -> Classes:
    """CLIP's names are the labels in words, in the same order but for case."""
    path = "datasets/oxford_iiit_pet/oxford_iiit_pet_dataset_builder.py"
    for node in ast.parse((package("tensorflow_datasets") / path).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_LABEL_CLASSES":
            labels = ast.literal_eval(node.value)
    by_label = {name.casefold().replace(" ", "_"): name for name in clip_json("classnames")["pets"]}
    return [(label, by_label[label.casefold()]) for label in labels]


def caltech101() -> Classes:
    """CLIP's names in the order of the labels, which clip_benchmark calls VTAB's."""
    labels = tfds_labels("image_classification/caltech101_labels.txt")
    names = clip_json("classnames")["caltech101_vtab"]
    return [(label, " ".join(name.split())) for label, name in zip(labels, names, strict=True)]


def ucf101_templates() -> list[str]:
    """CLIP's 48: four nouns, two articles, and five verbs or none."""
    return [
        f"a {noun} of {article} person {verb}{{}}."
        for verb in ("", "using ", "doing ", "during ", "performing ", "practicing ")
        for article in ("a", "the")
        for noun in ("photo", "video", "example", "demonstration")
    ]


def clip_templates(name: str) -> list[str]:
    """A data set's templates, which mark the name's place with `{c}`."""
    templates = clip_json("zeroshot_classification_templates")[name]
    return [template.replace("{c}", "{}") for template in templates]


def write(folder: pathlib.Path, *, classes: Classes, templates: list[str]) -> None:
    """Writes a data set's classes.tsv and templates.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    source = "# Where this is from: ../README.md. Made by tools/make_benchmark_names.py.\n"
    lines = [f"{label}\t{name}\n" for label, name in classes]
    (folder / "classes.tsv").write_text(source + "".join(lines), encoding="utf-8")
    lines = [f"{template}\n" for template in templates]
    (folder / "templates.txt").write_text(source + "".join(lines), encoding="utf-8")


def main(argv: list[str]) -> None:
    """Writes all data sets under the folder named, or the package's own."""
    assets = pathlib.Path(argv[1]) if len(argv) > 1 else ASSETS
    write(assets / "imagenet", classes=imagenet(), templates=clip_templates("imagenet1k"))
    write(assets / "sun397", classes=sun397(), templates=clip_templates("sun397"))
    write(assets / "food101", classes=food101(), templates=clip_templates("food101"))
    write(assets / "gtsrb", classes=gtsrb(), templates=clip_templates("gtsrb"))
    write(assets / "dtd", classes=dtd(), templates=clip_templates("dtd"))
    write(assets / "ucf101", classes=ucf101(), templates=ucf101_templates())
    write(assets / "pets", classes=pets(), templates=clip_templates("pets"))
    write(assets / "caltech101", classes=caltech101(), templates=clip_templates("caltech101"))


if __name__ == "__main__":
    main(sys.argv)

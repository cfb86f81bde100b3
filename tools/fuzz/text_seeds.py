"""Whole texts, lists and images, for `texts` to damage."""

import csv
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("circle", "square", "star")


def whole_images() -> dict[str, bytes]:
    """The images that the lists name, by their names."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((24, 20)).save(file, "PNG")
    return {f"{i}.png": file.getvalue() for i in range(8)}


def whole_files() -> dict[str, bytes]:
    """A config, and each kind of names, templates, descriptions and lists, by file name."""
    named = {f"n{i}": name for i, name in enumerate(CLASSES)}
    sentences: dict[str, Any] = {name: [f"a {name} is a shape."] for name in CLASSES}
    templates = ["a {}.", "the {}."]
    paths = [[f"{i}.png", CLASSES[i % 3]] for i in range(8)]
    tables = {}
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        text = io.StringIO()
        csv.writer(text, delimiter=separator).writerows([["path", "label"], *paths])
        tables[f"train.{suffix}"] = text.getvalue().encode()
    file = io.BytesIO()
    columns = {"path": [path for path, _ in paths], "label": [label for _, label in paths]}
    pq.write_table(pa.table(columns), file)
    yaml_list = "".join(f"- {json.dumps(text)}\n" for text in templates)
    yaml_named = "".join(f"{key}: {value}\n" for key, value in named.items())
    return tables | {
        "train.parquet": file.getvalue(),
        "classes.txt": "\n".join(CLASSES).encode(),
        "classes.tsv": "".join(f"{k}\t{v}\n" for k, v in named.items()).encode(),
        "classes.json": json.dumps(named).encode(),
        "classes.yaml": yaml_named.encode(),
        "templates.txt": "\n".join(templates).encode(),
        "templates.json": json.dumps(templates).encode(),
        "templates.yaml": yaml_list.encode(),
        "descriptions.json": json.dumps(sentences).encode(),
        "descriptions.yaml": json.dumps(sentences, indent=1).encode(),
        "config.py": b"from must_jax.config import default_config\n\n\ndef get_config():\n"
        b"    config = default_config()\n    config.epochs = 2\n    return config\n",
    }

"""The class names and templates that come with the package, against where they come from."""

import pathlib
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

import must_jax
from must_jax.class_names import read_class_names, read_templates

ROOT = pathlib.Path(__file__).parents[1]
ASSETS = pathlib.Path(must_jax.__file__).parent / "assets"
# Classes and templates.
SIZES = {
    "imagenet": (1000, 80),
    "sun397": (397, 2),
    "food101": (101, 1),
    "gtsrb": (43, 3),
    "dtd": (47, 8),
    "ucf101": (101, 48),
    "pets": (37, 1),
    "caltech101": (102, 34),
}


def test_the_program_writes_the_files_that_are_here(tmp_path):
    """And imports neither package, nor torch or tensorflow."""
    code = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(['torch', 'tensorflow'])); "
        f"sys.argv = ['make', {str(tmp_path)!r}]; "
        "runpy.run_path('tools/make_benchmark_names.py', run_name='__main__'); "
        "print('clip_benchmark' in sys.modules, 'tensorflow_datasets' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "False False\n", process.stderr
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(written) == 2 * len(SIZES)
    for path in written:
        assert (tmp_path / path).read_bytes() == (ASSETS / path).read_bytes(), path


@pytest.mark.parametrize("dataset", SIZES)
def test_every_class_and_template_is_there_once(dataset):
    classes = read_class_names(ASSETS / dataset / "classes.tsv")
    templates = read_templates(ASSETS / dataset / "templates.txt")
    assert (len(classes.names), len(set(templates))) == SIZES[dataset]
    assert len(classes.folders) == len(classes.names)


@pytest.mark.parametrize(
    ("dataset", "tfds_name"),
    [
        ("imagenet", "imagenet2012"),
        ("sun397", "sun397/tfds"),
        ("food101", "food101"),
        ("dtd", "dtd"),
        ("pets", "oxford_iiit_pet"),
        ("caltech101", "caltech101"),
    ],
)
def test_labels_are_in_the_order_that_tfds_numbers_them(dataset, tfds_name, tmp_path):
    classes = read_class_names(ASSETS / dataset / "classes.tsv")
    features = tfds.builder(tfds_name, data_dir=tmp_path).info.features
    assert list(classes.folders) == features["label"].names


def test_ucf101_is_in_the_order_of_its_own_list():
    """TFDS's class of it needs tensorflow, its list does not."""
    names = pathlib.Path(tfds.__file__).parent / "video" / "ucf101_labels.txt"
    classes = read_class_names(ASSETS / "ucf101" / "classes.tsv")
    assert list(classes.folders) == names.read_text().split()


def test_traffic_signs_are_numbered():
    classes = read_class_names(ASSETS / "gtsrb" / "classes.tsv")
    assert [int(folder) for folder in classes.folders] == list(range(43))
    assert {len(folder) for folder in classes.folders} == {5}


@pytest.mark.parametrize(
    ("dataset", "folder", "name"),
    [
        ("imagenet", "n01440764", "tench"),
        ("imagenet", "n02099601", "Golden Retriever"),
        ("imagenet", "n04355933", "sunglass"),
        ("imagenet", "n04008634", "projectile"),
        ("imagenet", "n15075141", "toilet paper"),
        ("sun397", "/a/abbey", "abbey"),
        ("sun397", "/c/car_interior/backseat", "car interior backseat"),
        ("sun397", "/j/jail_cell", "jail cell"),
        ("sun397", "/u/underwater/coral_reef", "underwater coral reef"),
        ("food101", "cup_cakes", "cup cakes"),
        ("gtsrb", "00014", "stop"),
        ("gtsrb", "00040", "blue circle with white arrows indicating a traffic circle"),
        ("dtd", "polka-dotted", "polka-dotted"),
        ("ucf101", "ApplyEyeMakeup", "Apply Eye Makeup"),
        ("ucf101", "HandstandPushups", "Hand Stand Pushups"),
        ("ucf101", "TaiChi", "Tai Chi"),
        ("ucf101", "YoYo", "Yo Yo"),
        ("pets", "Abyssinian", "Abyssinian"),
        ("pets", "american_bulldog", "American Bulldog"),
        ("pets", "yorkshire_terrier", "Yorkshire Terrier"),
        ("caltech101", "background_google", "background"),
        ("caltech101", "faces_easy", "centered face"),
        ("caltech101", "crocodile_head", "head of a crocodile"),
        ("caltech101", "yin_yang", "yin and yang symbol"),
    ],
)
def test_a_label_has_the_name_that_was_published(dataset, folder, name):
    """Read by eye from openai/CLIP, data/prompts.md and its ImageNet notebook."""
    classes = read_class_names(ASSETS / dataset / "classes.tsv")
    assert classes.names[classes.folders.index(folder)] == name


@pytest.mark.parametrize(
    ("dataset", "first", "last"),
    [
        ("imagenet", "a bad photo of a {}.", "a tattoo of the {}."),
        ("sun397", "a photo of a {}.", "a photo of the {}."),
        ("food101", "a photo of {}, a type of food.", "a photo of {}, a type of food."),
        (
            "gtsrb",
            'a zoomed in photo of a "{}" traffic sign.',
            'a close up photo of a "{}" traffic sign.',
        ),
        ("dtd", "a photo of a {} texture.", "a photo of the {} object."),
        ("ucf101", "a photo of a person {}.", "a demonstration of the person practicing {}."),
        ("pets", "a photo of a {}, a type of pet.", "a photo of a {}, a type of pet."),
        ("caltech101", "a photo of a {}.", "a doodle of the {}."),
    ],
)
def test_templates_begin_and_end_as_published(dataset, first, last):
    templates = read_templates(ASSETS / dataset / "templates.txt")
    assert (templates[0], templates[-1]) == (first, last)

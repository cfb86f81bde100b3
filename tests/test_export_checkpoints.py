"""Exports to the layouts of other libraries: the same bits converted again, the same logits."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from clip_checkpoints import assert_same_trees
from exported_runs import NAMES, ODD, OPENAI, SIGLIP, TINY, evaluation_logits, make_run
from full_disks import files_up_to
from safetensors.numpy import load_file
from transformers import CLIPImageProcessorPil, CLIPModel, SiglipModel

from must_jax.convert import convert, load_converted
from must_jax.errors import UserError
from must_jax.exporting import hugging_face, open_clip, openai
from must_jax.exporting.files import save_tensors, write_classifier
from must_jax.exporting.torch_archive import write_torch_archive

WRITERS = {"hugging_face": hugging_face, "open_clip": open_clip, "openai": openai}


@pytest.mark.parametrize(
    ("format", "spec"),
    [
        pytest.param("hugging_face", TINY, id="hugging_face"),
        pytest.param("hugging_face", ODD, id="hugging_face-gelu"),
        pytest.param("hugging_face", SIGLIP, id="siglip"),
        pytest.param("open_clip", OPENAI, id="open_clip"),
        pytest.param("open_clip", ODD, id="open_clip-gelu"),
        pytest.param("openai", OPENAI, id="openai"),
    ],
)
def test_converted_again_every_parameter_has_the_same_bits(format, spec, tmp_path):
    run = make_run(spec, tmp_path / "tokenizer")
    (tmp_path / "export").mkdir()
    WRITERS[format].write(run, tmp_path / "export")
    source = tmp_path / "export" / ("clip.pt" if format == "openai" else "")
    convert(source, tmp_path / "again")
    its_spec, params = load_converted(tmp_path / "again")
    # 100 has no logarithm in float32; the others have one.
    assert its_spec.logit_scale == pytest.approx(spec.logit_scale, rel=4e-7 if spec is TINY else 0)
    assert dataclasses.replace(its_spec, logit_scale=spec.logit_scale) == spec
    assert_same_trees(params, run.params)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("spec", "model"),
    [
        pytest.param(TINY, CLIPModel, id="clip"),
        pytest.param(ODD, CLIPModel, id="gelu"),
        pytest.param(SIGLIP, SiglipModel, id="siglip"),
    ],
)
def test_transformers_gives_the_logits_of_the_evaluation(spec, model, tmp_path):
    run = make_run(spec, tmp_path / "tokenizer")
    hugging_face.write(run, tmp_path)
    write_classifier(run, tmp_path)
    loaded, info = model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    size = spec.vision.image_size
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path)
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embed = loaded.get_image_features(pixel_values=pixels).pooler_output
        embed = torch.nn.functional.normalize(embed, dim=-1).numpy()
        scale = loaded.logit_scale.exp().item()
    about = json.loads((tmp_path / "classifier.json").read_text())
    assert about["names"] == list(NAMES)
    classifier = load_file(tmp_path / "classifier.safetensors")["classifier"]
    np.testing.assert_array_equal(classifier, run.classifier)
    ours = evaluation_logits(run, images)
    assert np.abs(ours).max() > 10
    # float32 through some layers, in logits a hundred times an embedding: 1e-6 of their size, and
    # a wrong activation, epsilon or normalisation moves them by more than 1e-3 of it.
    tolerance = 1e-5 * np.abs(ours).max()
    np.testing.assert_allclose(scale * embed @ classifier, ours, rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        about["logit_scale"] * embed @ classifier, ours, rtol=0, atol=tolerance
    )


@pytest.mark.parity
def test_torch_reads_the_archive(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "a.weight": rng.standard_normal((3, 5, 2)).astype(np.float32),
        "a.bias": np.array([0.0, -0.0, np.inf, np.nan, 1e-45], np.float32),
        "scale": np.asarray(4.6052, np.float32),
        "size": np.asarray(2**40, np.int64),
        "transposed": np.asfortranarray(rng.standard_normal((4, 6)).astype(np.float32)),
    }
    write_torch_archive(tmp_path / "a.pt", tensors)
    for options in ({}, {"mmap": True}):
        theirs = torch.load(tmp_path / "a.pt", weights_only=True, **options)
        assert list(theirs) == list(tensors)
        for name, tensor in theirs.items():
            assert tuple(tensor.shape) == tensors[name].shape
            assert tensor.numpy().dtype == tensors[name].dtype
            assert tensor.numpy().tobytes() == tensors[name].tobytes()
            # As PyTorch's own files: what is mapped into memory lies where vectors want it.
            assert "mmap" not in options or tensor.data_ptr() % 64 == 0


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    tensors = {"a": np.zeros(10_000, np.float32)}
    with files_up_to(1000), pytest.raises(OSError, match="File too large"):
        save_tensors(tmp_path / "x.safetensors", tensors)


def test_classifier_json_tells_of_the_run(tmp_path):
    run = make_run(TINY, tmp_path / "tokenizer")
    write_classifier(run, tmp_path)
    files = [tmp_path / name for name in ("classifier.json", "classifier.safetensors")]
    assert len({file.stat().st_mode for file in files}) == 1
    assert json.loads((tmp_path / "classifier.json").read_text()) == {
        "names": list(NAMES),
        "tree": "teacher",
        "step": 8,
        "logit_scale": 100.0,
        "image_size": 16,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
    }


def changed(spec, **text):
    return dataclasses.replace(spec, text=dataclasses.replace(spec.text, **text))


@pytest.mark.parametrize(
    ("format", "spec", "messages"),
    [
        ("open_clip", SIGLIP, ["no place for a SigLIP"]),
        ("openai", SIGLIP, ["no place for a SigLIP"]),
        ("open_clip", changed(TINY, eot_token_id=3), ["texts end with token 3, expected 98"]),
        ("open_clip", changed(TINY, activation="gelu"), ["activations are gelu and quick_gelu"]),
        ("hugging_face", changed(TINY, activation="gelu_tanh"), ["gelu_tanh has no name"]),
        (
            "openai",
            ODD,
            [
                "activation of the image tower gelu, expected quick_gelu",
                "LayerNorm epsilon of the text tower 1e-06",
                "heads of the image tower 3, expected 0",
                "MLP width of the text tower 100, expected 160",
                "image mean [0.5, 0.4, 0.3]",
                "image deviation [0.2, 0.25, 0.3]",
            ],
        ),
        (
            "hugging_face",
            dataclasses.replace(SIGLIP, logit_bias=None),
            ["convert the checkpoint again"],
        ),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(format, spec, messages, tmp_path):
    run = make_run(spec, tmp_path / "tokenizer")
    with pytest.raises(UserError) as error:
        WRITERS[format].write(run, tmp_path)
    for message in messages:
        assert message in str(error.value)
    assert "\n" not in str(error.value)

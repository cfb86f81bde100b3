"""A conversion takes no more memory than the file is large, and little besides."""

import subprocess
import sys

import pytest
import torch
from clip_checkpoints import TINY, make_clip, save_clip, to_openai, write_tokenizer
from open_clip_checkpoints import save_open_clip, shape_config

from must_jax.convert import convert

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

CONFIG, MODEL_CFG = shape_config("ViT-L-14", activation="quick_gelu", layers=3, vocab_size=99)


@pytest.fixture(scope="module")
def clip():
    return make_clip(**CONFIG)


@pytest.fixture(scope="module")
def overhead(tmp_path_factory):
    """What the interpreter and the libraries take."""
    folder = tmp_path_factory.mktemp("tiny")
    return peak_memory(save_clip(make_clip(**TINY), folder / "source"), folder / "target")


def peak_memory(source, target):
    """What a fresh process tells of converting `source`, in bytes."""
    code = (
        "import sys; from must_jax.convert import convert; "
        "print(convert(sys.argv[1], sys.argv[2]).peak_memory)"
    )
    command = [sys.executable, "-c", code, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return int(done.stdout)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["hugging_face", "open_clip", "openai"])
def test_memory_is_in_proportion_to_the_file(kind, clip, overhead, tmp_path):
    source = tmp_path / "source"
    if kind == "hugging_face":
        save_clip(clip, source)
        file = source / "model.safetensors"
    elif kind == "open_clip":
        file = source / "open_clip_pytorch_model.bin"
        save_open_clip(clip, MODEL_CFG, source, file=file.name)
    else:
        # As released: TorchScript, in half precision.
        write_tokenizer(source, 99)
        file = source = source / "clip.pt"
        torch.jit.script(to_openai(clip)).half().save(file)
    size = file.stat().st_size
    assert size > 100e6

    extra = peak_memory(source, tmp_path / "target") - overhead
    # The parameters are as large as the file, and the block at hand comes on top: 1.1 was measured.
    assert 0.9 * size < extra < 1.5 * size


def test_memory_is_told(tmp_path):
    summary = convert(save_clip(make_clip(**TINY), tmp_path / "tiny"), tmp_path / "a")
    assert f"peak memory {summary.peak_memory / 2**30:.2f} GiB" in str(summary)

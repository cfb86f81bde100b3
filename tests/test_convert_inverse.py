"""The conversion tables run backwards: parameters to the tensors that they came from."""

import fnmatch

import numpy as np
import pytest
import siglip_checkpoints
from clip_checkpoints import TINY, make_clip, save_clip, save_openai
from open_clip_checkpoints import save_open_clip
from siglip_checkpoints import make_siglip, save_siglip

from must_jax.convert.families import open_checkpoint
from must_jax.convert.source import read_params, source_tensors

MODEL_CFG = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 8,
        "width": 128,
        "head_width": 64,
        "layers": 3,
        "mlp_ratio": 1.5,
    },
    "text_cfg": {
        "width": 64,
        "heads": 1,
        "layers": 2,
        "mlp_ratio": 2.5,
        "vocab_size": 99,
        "context_length": 16,
    },
}
SAVED = {
    "hugging_face": lambda folder: save_clip(make_clip(**TINY), folder),
    "openai": lambda folder: save_openai(make_clip(**TINY), folder),
    "open_clip": lambda folder: save_open_clip(make_clip(**TINY), MODEL_CFG, folder),
    "open_clip_custom_text": lambda folder: save_open_clip(
        make_clip(**TINY), MODEL_CFG, folder, custom_text=True
    ),
    "siglip": lambda folder: save_siglip(make_siglip(**siglip_checkpoints.TINY), folder),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("family", SAVED)
def test_tensors_come_back_bit_for_bit(family, tmp_path):
    checkpoint = open_checkpoint(SAVED[family](tmp_path), activation=None)
    layout = checkpoint.layout
    tensors = source_tensors(read_params(checkpoint, where=""), layout=layout, spec=checkpoint.spec)
    expected = {
        key: np.asarray(tensor)
        for key, tensor in checkpoint.tensors.items()
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in layout.ignored)
    }
    assert tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        assert tensors[key].dtype == tensor.dtype == np.float32, key
        assert tensors[key].shape == tensor.shape, key
        np.testing.assert_array_equal(tensors[key], tensor, err_msg=key)

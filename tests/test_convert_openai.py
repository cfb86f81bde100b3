"""OpenAI's checkpoints: TorchScript archives and state dicts, without torch."""

import dataclasses
import gzip
import json
import pathlib
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import torch
from clip_checkpoints import TINY, make_clip, save_clip, to_openai, write_tokenizer

from must_jax.convert import convert, load_converted
from must_jax.convert.bpe import END, OPENAI_VOCABULARY, START, byte_symbols
from must_jax.convert.bpe import write_tokenizer as bpe
from must_jax.convert.conversion import read_checkpoint
from must_jax.convert.openai import LAYOUT
from must_jax.convert.source import SourceCheckpoint, read_params
from must_jax.errors import UserError
from must_jax.models import ClipSpec, TextSpec, TextTransformer, VisionSpec, VisionTransformer
from must_jax.tokenizer import load_tokenizer

GOLDEN = pathlib.Path(__file__).parent / "golden"

# OpenAI's code pools at the largest id, and has no field for anything else.
CONFIG = TINY | {"text": TINY["text"] | {"eos_token_id": 2}}


@pytest.fixture(scope="module")
def half_clip():
    """A `CLIPModel` whose weights are numbers that float16 holds."""
    model = make_clip(**CONFIG)
    return model.half().float()


@pytest.fixture(scope="module")
def reference(half_clip, tmp_path_factory):
    """The same weights by way of the Hugging Face layout."""
    folder = tmp_path_factory.mktemp("hf")
    spec, _, params = read_checkpoint(save_clip(half_clip, folder), activation=None)
    return spec, params


def state_dict(model, **changes):
    """Float32 weights of an OpenAI module by name; a change to None leaves one out."""
    weights = dict(to_openai(model).state_dict()) | changes
    return {name: value for name, value in weights.items() if value is not None}


def half_but_norms(state):
    """The types of the released files: matrices in half precision, LayerNorms in single."""
    return {k: v if ".ln_" in k or v.dtype == torch.int64 else v.half() for k, v in state.items()}


def save_script(module, path, *, traced, half):
    config = CONFIG["vision"], CONFIG["text"]
    example = (
        torch.zeros(1, 3, config[0]["image_size"], config[0]["image_size"]),
        torch.zeros(1, config[1]["max_position_embeddings"], dtype=torch.int64),
    )
    script = (
        torch.jit.trace(module, example, check_trace=False) if traced else torch.jit.script(module)
    )
    (script.half() if half else script).save(path)


def assert_same(params, reference):
    ours, theirs = (dict(jax.tree.leaves_with_path(tree)) for tree in (params, reference))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=jax.tree_util.keystr(path))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_file_gives_the_hugging_face_parameters_without_torch(
    half_clip, reference, tmp_path
):
    module = to_openai(half_clip)
    state = state_dict(half_clip)
    save_script(module, tmp_path / "scripted.pt", traced=False, half=False)
    save_script(module, tmp_path / "traced.pt", traced=True, half=False)
    save_script(to_openai(half_clip), tmp_path / "scripted_half.pt", traced=False, half=True)
    save_script(to_openai(half_clip), tmp_path / "traced_half.pt", traced=True, half=True)
    torch.save(state, tmp_path / "state.pt")
    torch.save(half_but_norms(state), tmp_path / "state_half.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "nested.pt")
    torch.save({"model": to_openai(half_clip).state_dict()}, tmp_path / "ordered.pt")
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "parallel.pt")
    parameters = {k: torch.nn.Parameter(v, v.dtype.is_floating_point) for k, v in state.items()}
    torch.save(parameters, tmp_path / "parameters.pt")
    write_tokenizer(tmp_path, CONFIG["text"]["vocab_size"])

    program = """
        import pathlib, sys
        sys.modules["torch"] = None
        from must_jax.convert import convert
        for file in sorted(pathlib.Path(sys.argv[1]).glob("*.pt")):
            convert(file, file.with_suffix(""))
        assert sys.modules["torch"] is None
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)

    expected_spec, expected = reference
    files = sorted(tmp_path.glob("*.pt"))
    assert len(files) == 10
    for file in files:
        spec, params = load_converted(file.with_suffix(""))
        assert spec.vision == expected_spec.vision, file
        assert spec.text == expected_spec.text, file
        assert spec.logit_scale == expected_spec.logit_scale
        assert_same(params, expected)


@pytest.mark.parity
def test_logits_are_those_of_the_torch_module(tmp_path):
    model = make_clip(**CONFIG, seed=3)
    module = to_openai(model)
    torch.save(module.state_dict(), tmp_path / "clip.pt")
    spec, _, params = read_checkpoint(tmp_path / "clip.pt", activation=None)
    images = torch.randn(2, 3, 32, 32)
    ids = torch.randint(0, 97, (2, 16))
    ids[0, 5] = ids[1, 8] = 98
    with torch.no_grad():
        image_embed, text_embed = (x.numpy() for x in module(images, ids))
    vision = VisionTransformer(spec.vision, spec.embed_dim)
    ours = vision.apply({"params": params["vision"]}, images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(ours.image_embed, image_embed, rtol=0, atol=1e-5)
    text = TextTransformer(spec.text, spec.embed_dim)
    ours = text.apply({"params": params["text"]}, ids.numpy())
    np.testing.assert_allclose(ours, text_embed, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("width", "heads"), [(48, 1), (64, 1), (192, 3)])
def test_heads_are_one_for_every_64_units(width, heads, tmp_path):
    vision = CONFIG["vision"] | {"hidden_size": width, "num_attention_heads": heads}
    torch.save(dense_state(CONFIG | {"vision": vision}), tmp_path / "clip.pt")
    spec, _, params = read_checkpoint(tmp_path / "clip.pt", activation=None)
    assert spec.vision.num_heads == heads
    assert params["vision"]["blocks"]["attn"]["out"]["kernel"].shape[1] == heads


@pytest.mark.parametrize(("width", "name"), [(1280, "ViT-H/14"), (1408, "ViT-g/14")])
def test_widths_whose_heads_are_wider_are_refused(width, name, tmp_path):
    vision = CONFIG["vision"] | {"hidden_size": width, "num_hidden_layers": 1}
    torch.save(dense_state(CONFIG | {"vision": vision}), tmp_path / "clip.pt")
    with pytest.raises(UserError, match=rf"{width} wide, as OpenCLIP's {name}.*open_clip_config"):
        read_checkpoint(tmp_path / "clip.pt", activation=None)


def dense_state(config):
    """An OpenAI state dict of zeros with the shapes of a configuration, made from names alone."""
    vision, text, embed = config["vision"], config["text"], config["projection_dim"]
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    width, text_width = vision["hidden_size"], text["hidden_size"]
    shapes = {
        "visual.conv1.weight": (width, 3, vision["patch_size"], vision["patch_size"]),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (tokens, width),
        "visual.proj": (width, embed),
        "token_embedding.weight": (text["vocab_size"], text_width),
        "positional_embedding": (text["max_position_embeddings"], text_width),
        "text_projection": (text_width, embed),
        "logit_scale": (),
    }
    norms = {"visual.ln_pre": width, "visual.ln_post": width, "ln_final": text_width}
    for prefix, tower, w in [("visual.", vision, width), ("", text, text_width)]:
        for i in range(tower["num_hidden_layers"]):
            block, mlp = f"{prefix}transformer.resblocks.{i}", tower["intermediate_size"]
            norms |= {f"{block}.ln_1": w, f"{block}.ln_2": w}
            shapes |= {
                f"{block}.attn.in_proj_weight": (3 * w, w),
                f"{block}.attn.in_proj_bias": (3 * w,),
                f"{block}.attn.out_proj.weight": (w, w),
                f"{block}.attn.out_proj.bias": (w,),
                f"{block}.mlp.c_fc.weight": (mlp, w),
                f"{block}.mlp.c_fc.bias": (mlp,),
                f"{block}.mlp.c_proj.weight": (w, mlp),
                f"{block}.mlp.c_proj.bias": (w,),
            }
    for name, w in norms.items():
        shapes |= {f"{name}.weight": (w,), f"{name}.bias": (w,)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"visual.proj": None}, ["missing: visual.proj"]),
        ({"logit_scale": None}, ["missing: logit_scale"]),
        (
            {"ln_final.bias": None, "visual.transformer.resblocks.1.ln_1.weight": None},
            ["missing: ln_final.bias, visual.transformer.resblocks.1.ln_1.weight"],
        ),
        (
            {"visual.conv1.weight": None, "extra.bias": torch.zeros(1), "more": torch.zeros(1)},
            ["missing: visual.conv1.weight", "left over: extra.bias, more"],
        ),
        (
            {"ln_final.bias": torch.zeros(9), "visual.ln_pre.weight": torch.zeros(2, 2), "z": None},
            ["ln_final.bias is (9,), expected (64,)", "visual.ln_pre.weight is (2, 2)"],
        ),
        ({"visual.proj": torch.zeros(3)}, ["wrong number of axes"]),
        ({"visual.positional_embedding": torch.zeros(12, 128)}, ["12 rows"]),
        ({"logit_scale": torch.tensor(float("nan"))}, ["logit_scale"]),
        ({"logit_scale": torch.zeros(2)}, ["logit_scale"]),
        ({"visual.layer1.0.conv1.weight": torch.zeros(1)}, ["ResNet"]),
        ({"visual.attnpool.k_proj.weight": torch.zeros(1)}, ["ResNet"]),
    ],
)
def test_what_does_not_fit_is_listed(changes, messages, tmp_path):
    state = {k: v for k, v in (dense_state(CONFIG) | changes).items() if v is not None}
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(UserError) as error:
        read_checkpoint(tmp_path / "clip.pt", activation=None)
    for message in [*messages, str(tmp_path / "clip.pt")]:
        assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "state", "message"),
    [
        ("a.pt", {"fc.weight": torch.zeros(2)}, "unknown layout"),
        ("a.pt", {"vision_model.embeddings.class_embedding": torch.zeros(2)}, "pass its folder"),
        ("a.pt", {"epoch": 3}, "no state dict"),
        ("a.safetensors", {}, "pass its folder"),
    ],
)
def test_unknown_layouts_are_refused(name, state, message, tmp_path):
    torch.save(state, tmp_path / name)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / name, activation=None)


def test_activation_is_openais_unless_told(tmp_path):
    torch.save(dense_state(CONFIG), tmp_path / "clip.pt")
    for given, expected in [(None, "quick_gelu"), ("gelu", "gelu")]:
        spec, _, _ = read_checkpoint(tmp_path / "clip.pt", activation=given)
        assert spec.vision.activation == spec.text.activation == expected
    with pytest.raises(UserError, match="'tanh' is unknown"):
        read_checkpoint(tmp_path / "clip.pt", activation="tanh")


def write_vocabulary(path, merges):
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def test_openais_vocabulary_becomes_a_tokenizer(tmp_path):
    write_vocabulary(tmp_path / OPENAI_VOCABULARY, ["t h", "th e</w>", "Ġ Ġ</w>"])
    bpe(tmp_path / OPENAI_VOCABULARY, tmp_path / "tokenizer")
    text = CONFIG["text"] | {"vocab_size": 512 + 3 + 2}
    torch.save(dense_state(CONFIG | {"text": text}), tmp_path / "clip.pt")
    spec, _, _ = read_checkpoint(tmp_path / "clip.pt", activation=None)
    tokenizer = load_tokenizer(tmp_path / "tokenizer", spec=spec.text)
    symbols = byte_symbols()
    assert len(set(symbols)) == 256
    # "!" is byte symbol 0; a word's last symbol carries the end of the word, 256 further on.
    word = [symbols.index("a"), 256 + symbols.index("b")]
    [ids] = tokenizer.encode(["The ab !"])
    assert ids == [515, 513, *word, 256, 516]
    vocabulary = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text())
    assert [vocabulary[START], vocabulary[END]] == [515, 516]
    # A letter outside ASCII is two bytes; é is C3 A9, both of which print.
    [ids] = tokenizer.encode(["é"])
    assert ids[1:3] == [symbols.index("Ã"), 256 + symbols.index("©")]


def test_no_more_merges_are_taken_than_clip_has(tmp_path):
    alphabet = byte_symbols()
    pairs = [f"{a} {b}" for a in alphabet for b in alphabet]
    write_vocabulary(tmp_path / OPENAI_VOCABULARY, pairs)
    bpe(tmp_path / OPENAI_VOCABULARY, tmp_path / "tokenizer")
    text = CONFIG["text"] | {"vocab_size": 49408}
    torch.save(dense_state(CONFIG | {"text": text}), tmp_path / "clip.pt")
    spec, _, _ = read_checkpoint(tmp_path / "clip.pt", activation=None)
    assert load_tokenizer(tmp_path / "tokenizer", spec=spec.text).end_id == 49407


@pytest.mark.parametrize(
    "name", ["visual.conv1.weight", "positional_embedding", "visual.proj", "visual.class_embedding"]
)
def test_an_axis_without_elements_is_refused(name, tmp_path):
    state = dense_state(CONFIG)
    state[name] = state[name][..., :0]
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(UserError, match=r"an axis without elements|wrong shape"):
        read_checkpoint(tmp_path / "clip.pt", activation=None)


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b"x\na b c\n")[:10] + b"\xff" * 9,
        gzip.compress(b"x\na b c\n"),
        gzip.compress(b"x"),
    ],
    # The bytes have the time in them, and each process of pytest-xdist must name the same tests.
    ids=["no gzip", "damaged", "other merges", "one line"],
)
def test_another_vocabulary_file_is_refused(content, tmp_path):
    (tmp_path / OPENAI_VOCABULARY).write_bytes(content)
    with pytest.raises(UserError, match=OPENAI_VOCABULARY):
        bpe(tmp_path / OPENAI_VOCABULARY, tmp_path / "tokenizer")


def test_tokenizer_is_found_beside_the_file_or_where_told(tmp_path):
    torch.save(dense_state(CONFIG), tmp_path / "clip.pt")
    with pytest.raises(UserError, match=f"(?s)no tokenizer.*{OPENAI_VOCABULARY}.*--tokenizer"):
        convert(tmp_path / "clip.pt", tmp_path / "target")
    with pytest.raises(UserError, match="elsewhere: no tokenizer"):
        convert(tmp_path / "clip.pt", tmp_path / "target", tokenizer=tmp_path / "elsewhere")
    write_tokenizer(tmp_path / "elsewhere", 99)
    convert(tmp_path / "clip.pt", tmp_path / "target", tokenizer=tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", tmp_path, dirs_exist_ok=True)
    convert(tmp_path / "clip.pt", tmp_path / "second")
    write_tokenizer(tmp_path / "elsewhere", 120)
    with pytest.raises(UserError, match="120 tokens, the checkpoint's vocabulary 99"):
        convert(tmp_path / "clip.pt", tmp_path / "third", tokenizer=tmp_path / "elsewhere")
    assert not (tmp_path / "third").exists()


@pytest.mark.parity
def test_golden_image_tower():
    """The published implementation's teacher logits before the first step."""
    with np.load(GOLDEN / "k10_main.npz") as arrays:
        golden = dict(arrays)
    prefix = "init/model."
    source = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    spec = VisionSpec(
        image_size=32,
        patch_size=8,
        width=64,
        depth=2,
        num_heads=1,
        mlp_dim=256,
        activation="quick_gelu",
        layer_norm_eps=1e-5,
    )
    params = vision_params(source, spec)
    tower = VisionTransformer(spec, 32, num_classes=10)
    params["classifier"] = source["visual.classifier"]
    images = golden["images_weak"][0].transpose(0, 2, 3, 1)
    logits = tower.apply({"params": params}, images).logits
    # A few times the recorded distance between float32 and float64, on logits scaled by 100.
    tolerance = 4 * float(golden["noise/steps/teacher_logits"][0])
    np.testing.assert_allclose(logits, golden["steps/teacher_logits"][0], rtol=0, atol=tolerance)


def vision_params(source, vision):
    """The image half of OpenAI's table, on tensors that come without a text half."""
    text = TextSpec(
        width=64,
        depth=0,
        num_heads=1,
        mlp_dim=256,
        activation="quick_gelu",
        layer_norm_eps=1e-5,
        vocab_size=1,
        context_length=1,
        eot_token_id=None,
    )
    spec = ClipSpec(
        vision=vision,
        text=text,
        embed_dim=32,
        logit_scale=100.0,
        image_mean=(0.0,) * 3,
        image_std=(1.0,) * 3,
    )
    rules = tuple(rule for rule in LAYOUT.rules if rule.path.startswith("vision/"))
    layout = dataclasses.replace(LAYOUT, rules=rules)
    checkpoint = SourceCheckpoint(layout=layout, tensors=source, spec=spec)
    return read_params(checkpoint, where="golden")["vision"]

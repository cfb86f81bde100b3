"""What a checkpoint is made of: the architecture and the image statistics."""

import dataclasses
import json
from typing import Any

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
IMAGE_POOLINGS = ("class_token", "attention")
TEXT_POOLINGS = ("end_token", "last_token")


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} {value!r} is none of {', '.join(choices)}")


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r:.40}, expected a number from {low:g} to {high:g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """The transformer of either tower. Sizes in units; `activation` is one of `ACTIVATIONS`."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    layer_norm_eps: float

    def __post_init__(self) -> None:
        """Refuses an activation that the layers don't know."""
        _check_choice("activation", self.activation, ACTIVATIONS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSpec(TowerSpec):
    """The image tower; `image_size` and `patch_size` in pixels.

    `pooling` is `class_token`, CLIP's: a class token runs through the blocks, behind a norm, and is
    projected. Or it is `attention`, SigLIP's: the patches alone run, embedded with a bias, and a
    learned probe attends to them.
    """

    image_size: int
    patch_size: int
    pooling: str = "class_token"

    def __post_init__(self) -> None:
        """Refuses an activation or a pooling that the model doesn't know."""
        super().__post_init__()
        _check_choice("pooling", self.pooling, IMAGE_POOLINGS)

    @property
    def has_class_token(self) -> bool:
        """Whether a class token stands before the patches."""
        return self.pooling == "class_token"

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return self.grid_size**2

    @property
    def num_tokens(self) -> int:
        """Positions of one image: the patches and, where there is one, the class token."""
        return self.num_patches + self.has_class_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSpec(TowerSpec):
    """The text tower.

    `pooling` `end_token`, CLIP's, pools at the first occurrence of `eot_token_id`; where that is
    None, at the largest token id instead, as OpenAI's checkpoints do. `last_token`, SigLIP's, pools
    at the last position, which is padding after most texts, and knows no `eot_token_id`.

    `is_causal` says that a token attends to none after it, `proj_bias` that the projection to the
    joint space adds a bias.
    """

    vocab_size: int
    context_length: int
    eot_token_id: int | None
    pooling: str = "end_token"
    is_causal: bool = True
    proj_bias: bool = False

    def __post_init__(self) -> None:
        """Refuses an activation or a pooling that the model doesn't know."""
        super().__post_init__()
        _check_choice("pooling", self.pooling, TEXT_POOLINGS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """A whole checkpoint. `logit_scale` is the factor itself (100 in OpenAI's), not its logarithm.

    `image_mean` and `image_std` are per colour (red, green, blue), for pixels in 0..1. Attention
    pooling ends in the tower's width, which `embed_dim` has to be then. `logit_bias` is SigLIP's,
    which no softmax over classes needs; None for a CLIP, and where it wasn't recorded.
    """

    vision: VisionSpec
    text: TextSpec
    embed_dim: int
    logit_scale: float
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    logit_bias: float | None = None

    def __post_init__(self) -> None:
        """Refuses an image tower that doesn't end in the joint space."""
        width = self.vision.width
        if not self.vision.has_class_token and self.embed_dim != width:
            raise ValueError(f"embedding {self.embed_dim} differs from the pooled width {width}")

    def check_numbers(self) -> None:
        """Refuses numbers that are far from any CLIP's, and near where float32 ends.

        Raises:
          ValueError: names the number, and what it may be.
        """
        colours = {
            "image mean": (self.image_mean, -100.0, 100.0),
            "image std": (self.image_std, 1e-4, 1e4),
        }
        for name, (values, low, high) in colours.items():
            if len(values) != 3:
                raise ValueError(f"{name} has {len(values)} numbers, expected one a colour")
            for value in values:
                _check_range(name, value, low, high)
        _check_range("logit scale", self.logit_scale, 1e-6, 1e6)
        if self.logit_bias is not None:
            _check_range("logit bias", self.logit_bias, -1e6, 1e6)
        for tower in (self.vision, self.text):
            _check_range("layer norm's epsilon", tower.layer_norm_eps, 1e-12, 1.0)

    def to_json(self) -> str:
        """This spec as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "ClipSpec":
        """The spec that `to_json` wrote; other keys of the object are ignored.

        Raises:
          KeyError, TypeError, ValueError: the text is not such an object.
        """
        values: dict[str, Any] = json.loads(text)
        return cls(
            vision=VisionSpec(**values["vision"]),
            text=TextSpec(**values["text"]),
            embed_dim=values["embed_dim"],
            logit_scale=values["logit_scale"],
            image_mean=tuple(values["image_mean"]),
            image_std=tuple(values["image_std"]),
            logit_bias=values.get("logit_bias"),
        )

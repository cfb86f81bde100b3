"""What a CLIP checkpoint is made of: the architecture and the image statistics."""

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """The transformer of either tower. Sizes in units; `activation` is `quick_gelu` or `gelu`."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    activation: str
    layer_norm_eps: float

    def __post_init__(self) -> None:
        """Refuses an activation that the layers don't know."""
        if self.activation not in ("quick_gelu", "gelu"):
            raise ValueError(f"activation {self.activation!r} is neither quick_gelu nor gelu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSpec(TowerSpec):
    """The image tower; `image_size` and `patch_size` in pixels."""

    image_size: int
    patch_size: int

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return self.grid_size**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSpec(TowerSpec):
    """The text tower.

    `eot_token_id` is the token whose position is pooled, at its first occurrence. None pools at the
    largest token id instead, as OpenAI's checkpoints do.
    """

    vocab_size: int
    context_length: int
    eot_token_id: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """A whole checkpoint. `logit_scale` is the factor itself (100 in OpenAI's), not its logarithm.

    `image_mean` and `image_std` are per colour (red, green, blue), for pixels in 0..1.
    """

    vision: VisionSpec
    text: TextSpec
    embed_dim: int
    logit_scale: float
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

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
        )

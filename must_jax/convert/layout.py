"""How a checkpoint is laid out: which of its tensors becomes which parameter, as a table.

Shapes are written in letters: W width, M MLP width, E embedding, P patch size, N patches, T tokens
(patches and the class token, or the context), V vocabulary, 3W three widths; a digit is itself.
"""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence

from must_jax.convert.tensors import Tensors
from must_jax.convert.transforms import Transform, same
from must_jax.errors import UserError
from must_jax.models.spec import ClipSpec, TowerSpec

_LISTED = 100  # names in a message


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter and where it comes from.

    Attributes:
      path: the parameter, `vision/...` or `text/...`.
      sources: keys of the checkpoint, joined along their first axis; `*` is the number of a block,
        and the blocks are stacked.
      shape: the shape that each source has to have, in letters.
      transform: from the joined sources of one block to the parameter, and back.
    """

    path: str
    sources: tuple[str, ...]
    shape: str
    transform: Transform = same

    @property
    def is_stacked(self) -> bool:
        """Whether the parameter has one layer a block."""
        return "*" in self.sources[0]

    def keys(self, depths: Mapping[str, int]) -> list[tuple[str, ...]]:
        """The source keys block by block; one entry where the rule names no block."""
        if not self.is_stacked:
            return [self.sources]
        depth = depths[self.path.partition("/")[0]]
        return [tuple(key.replace("*", str(i)) for key in self.sources) for i in range(depth)]

    def tower(self, spec: ClipSpec) -> TowerSpec:
        """The tower that the parameter belongs to."""
        return spec.vision if self.path.startswith("vision/") else spec.text


@dataclasses.dataclass(frozen=True)
class Layout:
    """A kind of checkpoint.

    Attributes:
      name: what messages call it.
      rules: one a parameter.
      scalars: keys that have to be there, for the spec and not for a parameter.
      scalar_shape: of these, as the family's own models have them.
      ignored: patterns of keys that are passed over where they are there.
    """

    name: str
    rules: tuple[Rule, ...]
    scalars: tuple[str, ...] = ("logit_scale",)
    scalar_shape: tuple[int, ...] = ()
    ignored: tuple[str, ...] = ()


def norm(path: str, source: str) -> tuple[Rule, ...]:
    """A LayerNorm."""
    return (
        Rule(f"{path}/scale", (f"{source}.weight",), "W"),
        Rule(f"{path}/bias", (f"{source}.bias",), "W"),
    )


def depths_of(spec: ClipSpec) -> dict[str, int]:
    """The blocks of either tower."""
    return {"vision": spec.vision.depth, "text": spec.text.depth}


def check_names(
    tensors: Tensors, *, layout: Layout, depths: Mapping[str, int], where: str, also: str = ""
) -> None:
    """Refuses a checkpoint that lacks a tensor of its layout, or has one more.

    Args:
      tensors: the checkpoint.
      layout: its layout.
      depths: the blocks of `vision` and `text`.
      where: the file or folder, for the message.
      also: a further complaint for the same message.

    Raises:
      UserError: what is missing, what is left over, and `also`, in one line.
    """
    # A number in a file of a few bytes must not cost gigabytes.
    for tower, depth in depths.items():
        if depth > len(tensors):
            raise UserError(
                f"{where}: does not fit the {layout.name} layout; {depth} blocks of the {tower} "
                f"tower, and {len(tensors)} tensors in all"
            )
    wanted = {key for rule in layout.rules for keys in rule.keys(depths) for key in keys}
    wanted.update(layout.scalars)
    missing = sorted(wanted - tensors.keys())
    left_over = sorted(
        key
        for key in tensors.keys() - wanted
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in layout.ignored)
    )
    problems = [f"missing: {_listed(missing)}"] if missing else []
    problems += [f"left over: {_listed(left_over)}"] if left_over else []
    problems += [also] if also else []
    if problems:
        raise UserError(f"{where}: does not fit the {layout.name} layout; {'; '.join(problems)}")


def _listed(names: Sequence[str], *, separator: str = ", ") -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return separator.join(names[:_LISTED]) + more


def check_fit(tensors: Tensors, *, layout: Layout, spec: ClipSpec, where: str) -> None:
    """Refuses a checkpoint whose names or shapes are not those of its layout and architecture.

    Raises:
      UserError: what doesn't fit, in one line.
    """
    wrong: list[str] = []
    depths = {tower: min(depth, len(tensors)) for tower, depth in depths_of(spec).items()}
    for rule in layout.rules:
        sizes = _sizes(spec, rule.tower(spec))
        shape = tuple(sizes[d] if d in sizes else int(d) for d in rule.shape.split())
        wrong += [
            f"{key} is {tuple(tensors[key].shape)}, expected {shape}"
            for keys in rule.keys(depths)
            for key in keys
            if key in tensors and tuple(tensors[key].shape) != shape
        ]
    also = f"wrong shape: {_listed(wrong, separator='; ')}" if wrong else ""
    check_names(tensors, layout=layout, depths=depths_of(spec), where=where, also=also)


def _sizes(spec: ClipSpec, tower: TowerSpec) -> dict[str, int]:
    num_patches = spec.vision.num_patches
    return {
        "W": tower.width,
        "3W": 3 * tower.width,
        "M": tower.mlp_dim,
        "E": spec.embed_dim,
        "P": spec.vision.patch_size,
        "N": num_patches,
        "T": num_patches + 1 if tower is spec.vision else spec.text.context_length,
        "V": spec.text.vocab_size,
    }

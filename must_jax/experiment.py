"""What a run is made of, put together from the config and checked before any compute is spent."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from must_jax import config as config_lib
from must_jax import sharding, zero_shot
from must_jax.class_names import (
    ClassNames,
    Descriptions,
    check_texts,
    class_texts,
    read_class_names,
    read_descriptions,
    read_templates,
)
from must_jax.convert import TOKENIZER, load_converted
from must_jax.data import pipeline
from must_jax.data.decode import UndecodableImageError
from must_jax.data.masking import count_masked
from must_jax.data.randaugment import RandAugment
from must_jax.data.sources import Classes, Labels, Source, decode_record, open_source
from must_jax.errors import UserError
from must_jax.local_files import local_path
from must_jax.models import ClipSpec, VisionTransformer
from must_jax.optimizer import cosine_schedule, ema_decay_schedule, make_optimizer
from must_jax.state import Params, TrainState, init_params, init_student, state_shapes
from must_jax.tokenizer import load_tokenizer
from must_jax.train_step import Method

TRIED_IMAGES = 8  # of a source, before a run starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Config, checkpoint and class names of a run.

    Attributes:
      spec: of the checkpoint, at the configured image size.
      clip_params: the checkpoint's `vision` and `text` towers, on the host.
      tokenizer: the text tower's.
      templates: prompts with a slot for a name; none where descriptions do without.
      descriptions: of every class, if the config names any.
    """

    config: ml_collections.ConfigDict
    spec: ClipSpec
    clip_params: Params
    tokenizer: Any
    classes: ClassNames
    templates: tuple[str, ...]
    descriptions: Descriptions | None = None

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """What each class's classifier column is the mean of."""
        return class_texts(self.classes, self.templates, self.descriptions)

    @property
    def model(self) -> VisionTransformer:
        """The image tower with its classifier."""
        return VisionTransformer(
            self.spec.vision,
            self.spec.embed_dim,
            num_classes=len(self.classes.names),
            logit_scale=self.spec.logit_scale,
            dtype=jnp.dtype(self.config.dtype),
            remat=self.config.remat,
            unroll=not self.config.scan_layers,
        )

    def method(self, *, steps_per_epoch: int) -> Method:
        """The method's constants."""
        config = self.config
        return Method(
            confidence_threshold=config.confidence_threshold,
            self_train_weight=config.self_train_weight,
            fair_weight=config.fair_weight,
            mim_weight=config.mim_weight,
            align_weight=config.align_weight,
            num_masked=count_masked(
                image_size=config.image_size,
                patch_size=self.spec.vision.patch_size,
                mask_patch_size=config.mask_patch_size,
                mask_ratio=config.mask_ratio,
            ),
            grad_accumulation=config.grad_accumulation,
            steps_per_epoch=steps_per_epoch,
            image_mean=self.spec.image_mean,
            image_std=self.spec.image_std,
        )

    def step_keywords(self, params: Params, *, steps_per_epoch: int) -> dict[str, Any]:
        """All that `train_step` takes beside state and batch; `params` may be shapes."""
        config = self.config
        learning_rate = cosine_schedule(
            learning_rate=config.learning_rate,
            min_learning_rate=config.min_learning_rate,
            batch_size=config.batch_size,
            num_steps=config.epochs * steps_per_epoch,
        )
        return {
            "model": self.model,
            "method": self.method(steps_per_epoch=steps_per_epoch),
            "optimizer": make_optimizer(
                params,
                schedule=learning_rate,
                weight_decay=config.weight_decay,
                layer_decay=config.layer_decay,
            ),
            "learning_rate": learning_rate,
            "ema_decay": ema_decay_schedule(
                initial=config.ema_decay_initial,
                final=config.ema_decay,
                warmup_steps=config.ema_warmup_steps,
            ),
        }

    def make_mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """The mesh that the config asks for, of all devices or of some topology's.

        Raises:
          UserError: the sizes don't fit the devices, or the checkpoint's heads and MLP.
        """
        mesh = sharding.make_mesh(**self.config.mesh, devices=devices)
        vision = self.spec.vision
        config_lib.check_model_axis(
            self.config, size=mesh.shape["model"], heads=vision.num_heads, mlp=vision.mlp_dim
        )
        return mesh

    def train_source(self, mesh: Mesh) -> Source:
        """The training images; their labels, where they have some, only feed a metric.

        Raises:
          UserError: they are missing or can't be used, or the batch does not fit it or the devices.
        """
        source = self.train_images
        config_lib.check_batch(
            self.config, num_images=len(source), num_devices=sharding.num_row_shards(mesh)
        )
        _check_decodes(source)
        return source

    @functools.cached_property
    def train_images(self) -> Source:
        """The training images, before it is known whether the batch fits them; opened once.

        Raises:
          UserError: they are missing or can't be used.
        """
        return self._open(self.config.dataset.train, labels="auto")

    def test_source(self) -> Source | None:
        """The labelled test images, or None where the config names none.

        Raises:
          UserError: they are missing or can't be used, or one has no label or no class's.
        """
        if not self.config.dataset.test:
            return None
        source = self._open(self.config.dataset.test, labels="required")
        _check_decodes(source)
        return source

    def images(self, path: str) -> Source:
        """Images without their labels, of a path that is read as `config.dataset.train` is.

        With `config.dataset.tfds` set, it is a split, unless there is a slash in it.

        Raises:
          UserError: they are missing or can't be used.
        """
        dataset = self.config.dataset
        source = open_source(
            path,
            image_field=dataset.image_field,
            tfds="" if "/" in path else dataset.tfds,
            data_dir=dataset.data_dir,
        )
        _check_decodes(source)
        return source

    def _open(self, path: str, *, labels: Labels) -> Source:
        dataset, classes = self.config.dataset, self.classes
        return open_source(
            path,
            classes=Classes(classes.names, folders=classes.folders, synonyms=classes.synonyms),
            labels=labels,
            image_field=dataset.image_field,
            label_field=dataset.label_field,
            tfds=dataset.tfds,
            data_dir=dataset.data_dir,
        )

    def student_shapes(self) -> Params:
        """Shapes and types of the student's parameters."""
        return self._student_shapes

    @functools.cached_property
    def _student_shapes(self) -> Params:
        return jax.eval_shape(functools.partial(init_params, self.model), jax.random.key(0))

    def state_shapes(self) -> TrainState:
        """Shapes and types of the state of a run."""
        shapes = self.student_shapes()
        optimizer = self.step_keywords(shapes, steps_per_epoch=1)["optimizer"]
        return state_shapes(shapes, optimizer=optimizer)

    def zero_shot_student(self, *, classifier: np.ndarray | None = None) -> Params:
        """The student before its first step, or one with another classifier (E, K)."""
        if classifier is None:
            classifier = zero_shot.build_classifier(
                spec=self.spec,
                text_params=self.clip_params["text"],
                tokenizer=self.tokenizer,
                texts=self.texts,
            )
        return init_student(
            self.model,
            self.clip_params["vision"],
            jnp.asarray(classifier),
            jax.random.key(self.config.seed),
        )

    def train_batches(self, source: Source, *, mesh: Mesh, start_step: int) -> pipeline.Loader:
        """This process's training batches from a step on, to be put together by `to_mesh`."""
        config, view = self.config, self.config.strong_view
        mean = [min(255, round(255 * value)) for value in self.spec.image_mean]
        return pipeline.train_loader(
            source,
            batch_size=config.batch_size,
            image_size=config.image_size,
            patch_size=self.spec.vision.patch_size,
            mask_patch_size=config.mask_patch_size,
            mask_ratio=config.mask_ratio,
            crop_area=view.crop_area,
            flip_probability=view.flip_probability,
            rand_augment=RandAugment(
                num_ops=view.num_ops, magnitude=view.magnitude, magnitude_std=view.magnitude_std
            ),
            fill_color=(mean[0], mean[1], mean[2]),
            seed=config.seed,
            num_epochs=config.epochs,
            start_step=start_step,
            **self._loader_keywords(mesh),
        )

    def eval_batches(self, source: Source, *, mesh: Mesh) -> pipeline.Loader:
        """This process's evaluation batches, to be put together by `to_mesh`."""
        devices = sharding.num_row_shards(mesh)
        return pipeline.eval_loader(
            source,
            # The end is padded anyway: so is a batch that the devices don't divide.
            batch_size=-(-self.config.batch_size // devices) * devices,
            image_size=self.config.image_size,
            **self._loader_keywords(mesh),
        )

    def _loader_keywords(self, mesh: Mesh) -> dict[str, Any]:
        loader = self.config.loader
        part, num_parts = sharding.process_rows(mesh)
        return {
            "process_index": part,
            "process_count": num_parts,
            "num_threads": loader.num_threads,
            "num_workers": loader.num_workers,
            "prefetch": loader.prefetch,
        }


def _check_decodes(source: Source) -> None:
    """Refuses a source of which nothing decodes, as far as a few records tell."""
    records = sorted({i * (len(source) - 1) // (TRIED_IMAGES - 1) for i in range(TRIED_IMAGES)})
    for record in records:
        try:
            decode_record(source, record)
            return
        except UndecodableImageError as error:
            reason = error
    raise UserError(
        f"none of the {len(records)} images that were tried in {source.path} decode, the last one "
        f"being {reason}"
    )


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Reads and checks all that the config names, except the images.

    Raises:
      UserError: a field, the names, the templates or the checkpoint are not usable.
    """
    config_lib.check_config(config)
    classes = read_class_names(_on_disk(config.dataset.class_names, "dataset.class_names"))
    templates: tuple[str, ...] = ()
    if config.dataset.templates:
        templates = read_templates(_on_disk(config.dataset.templates, "dataset.templates"))
    descriptions = None
    if config.dataset.descriptions:
        path = _on_disk(config.dataset.descriptions, "dataset.descriptions")
        descriptions = read_descriptions(path, classes=classes)
    check_texts(classes, templates, descriptions)
    checkpoint = _on_disk(config.checkpoint, "checkpoint")
    spec, clip_params = load_converted(checkpoint)
    tokenizer = load_tokenizer(os.path.join(checkpoint, TOKENIZER), spec=spec.text)
    config_lib.check_patches(config, patch_size=spec.vision.patch_size)
    vision = dataclasses.replace(spec.vision, image_size=config.image_size)
    return Experiment(
        config=config,
        spec=dataclasses.replace(spec, vision=vision),
        clip_params=clip_params,
        tokenizer=tokenizer,
        classes=classes,
        templates=templates,
        descriptions=descriptions,
    )


def _on_disk(path: str, field: str) -> str:
    return local_path(path, called=f"config.{field}", advice="copy it to a disk first")

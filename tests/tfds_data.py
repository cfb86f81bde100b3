"""A little TFDS data set, written by TFDS itself."""

import contextlib
import io

import tensorflow_datasets as tfds


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Images that the caller gives, with a label, a note and a second image."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits, names, **keywords):
        self._splits_given = splits
        self._names = names
        super().__init__(**keywords)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(**self._names),
                    "mask": tfds.features.Image(shape=(None, None, 1)),
                    "note": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(rows) for name, rows in self._splits_given.items()}

    def _generate_examples(self, rows):
        for i, (image, label) in enumerate(rows):
            yield (
                i,
                {
                    "image": io.BytesIO(image),
                    "label": label,
                    "mask": io.BytesIO(image),
                    "note": f"note {label}",
                },
            )


def write(folder, splits, *, names, file_format):
    """Prepares `splits`, lists of (encoded image, label), under `folder`; gives the builder."""
    builder = Shapes(data_dir=folder, file_format=file_format, splits=splits, names=names)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        builder.download_and_prepare()
    return builder

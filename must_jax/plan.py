"""What a run would take on accelerators that are not here, before they cost anything.

python -m must_jax.plan --config=configs/imagenet.py:b16 --topology=v5e:16x16
"""

import json
import os
import re
from collections.abc import Sequence

# Read when jax is imported, or its compilers are: this machine's own devices are not wanted.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # none of them drives a chip
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the CUDA compiler's notes on having no device

from absl import flags

from must_jax import config as config_lib
from must_jax import main as command
from must_jax import sharding
from must_jax.errors import UserError
from must_jax.flops import plain_flops
from must_jax.planning import report, shapes
from must_jax.planning.measure import largest_batch, measure
from must_jax.planning.topology import KNOWN, open_topology

_TOPOLOGY = flags.DEFINE_string("topology", None, f"Devices to compile for: {KNOWN}.")
_BATCH = flags.DEFINE_list("batch", None, "Global batch sizes, for config.batch_size: 512,1024.")
_MODEL = flags.DEFINE_string(
    "model", None, f"Shapes without a checkpoint: {', '.join(shapes.MODELS)}."
)
_NUM_CLASSES = flags.DEFINE_integer("num_classes", None, "Without a file of class names.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", None, "Training images, where no recipe tells.")
_LARGEST = flags.DEFINE_bool("largest", True, "Look for the largest batch that fits.")
_JSON = flags.DEFINE_bool(
    "json", False, "One JSON object a batch size, a line each; and one with the largest batch."
)


def main(argv: Sequence[str]) -> None:
    """Plans what the flags say."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} is not a flag; try --help")
    config = flags.FLAGS.config
    if config is None:
        raise UserError("--config is missing; give a config file, such as configs/imagenet.py:b16")
    if _TOPOLOGY.value is None:
        raise UserError(f"--topology is missing; known are {KNOWN}")
    sizes = _batch_sizes(_BATCH.value or [str(config.batch_size)])
    topology = open_topology(_TOPOLOGY.value)
    experiment = shapes.plan_experiment(config, model=_MODEL.value, num_classes=_NUM_CLASSES.value)
    num_images = shapes.count_images(config, _NUM_IMAGES.value)
    parts = sharding.num_row_shards(experiment.make_mesh(topology.devices))
    for size in sizes:
        with config.unlocked():
            config.batch_size = size
        config_lib.check_batch(config, num_images=num_images, num_devices=parts)
    plain = plain_flops(experiment.spec, num_classes=len(experiment.classes.names))

    def tell(measured: report.Measured) -> None:
        fields = report.record(measured, topology, plain_flops=plain, num_images=num_images)
        print(json.dumps(fields) if _JSON.value else report.table(fields), flush=True)

    done = []
    for size in sizes:
        done.append(measure(experiment, topology, size))
        tell(done[-1])
    if _LARGEST.value and topology.chip:
        largest, tried = largest_batch(experiment, topology, done, limit=num_images)
        for measured in tried:
            tell(measured)
        if _JSON.value:
            print(json.dumps({"topology": topology.name, "largest_batch": largest}))
        else:
            print(f"the largest batch found to fit: {largest or 'none'}")
    if not _JSON.value:
        print("\n".join(report.NOTES))


def _batch_sizes(told: Sequence[str]) -> list[int]:
    if not all(re.fullmatch("0*[1-9][0-9]{,8}", size.strip()) for size in told):
        raise UserError(f"--batch={','.join(told)} is no list of batch sizes, such as 512,1024")
    return [int(size) for size in told]


if __name__ == "__main__":
    command.run(main)

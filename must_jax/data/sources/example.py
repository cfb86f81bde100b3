"""Reads serialized `tf.train.Example` records without TensorFlow."""

from __future__ import annotations

Values = list[bytes] | list[int] | list[float]


def parse_example(record: bytes) -> dict[str, Values] | None:
    """The features of a record by name.

    Returns:
        What each feature lists; None if the record is no `tf.train.Example`, or an empty one.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_generated_pb2

    # Field 1 of the message, of a length: no image format starts so, and parsing alone would take
    # some other bytes for a message of unknown fields.
    if record[:1] != b"\n":
        return None
    example = tf_example_generated_pb2.Example()
    try:
        example.ParseFromString(record)
    except DecodeError:
        return None
    features = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        features[name] = list(getattr(feature, kind).value) if kind else []
    return features or None

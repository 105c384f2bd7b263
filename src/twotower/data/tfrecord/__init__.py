"""TFRecord files of `tf.train.Example` rows, written and read by columns.

Any TensorFlow program reads what is written here, and what TensorFlow wrote is read here, gzip
included. https://www.tensorflow.org/tutorials/load_data/tfrecord has the format.
"""

from twotower.data.tfrecord.columns import Column, ColumnKind, RaggedColumn, ShardEntry
from twotower.data.tfrecord.reader import RecordFile, read_shard
from twotower.data.tfrecord.writer import encode_rows, write_shard

__all__ = [
    "Column",
    "ColumnKind",
    "RaggedColumn",
    "RecordFile",
    "ShardEntry",
    "encode_rows",
    "read_shard",
    "write_shard",
]

"""Turn the Fashion-MNIST files of Debian's dataset-fashion-mnist into TFRecords, for two channels.

    prepare_data.py [--source FOLDER] DESTINATION

writes ``DESTINATION/training/part-<n>.tfrecord`` (60,000 images in 6 files) and
``DESTINATION/validation/part-0.tfrecord`` (10,000). The files are what a bucket holds:
``DESTINATION`` may be a folder that ``rclone serve s3`` shows as a bucket.
"""

import argparse
import gzip
import os

import numpy as np
import tensorflow as tf

SOURCE = "/usr/share/datasets/fashion-mnist"
CHANNELS = {"training": "train", "validation": "t10k"}
PER_FILE = 10_000


def read_idx(path):
    """Return the array of bytes in an IDX file: magic number, one size per axis, the values."""
    with gzip.open(path, "rb") as file:
        data = file.read()
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes")
    axes = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=axes, offset=4)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def example(image, label):
    feature = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label)])),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def prepare(source, destination):
    for channel, prefix in CHANNELS.items():
        paths = [
            os.path.join(source, f"{prefix}-{name}-ubyte.gz")
            for name in ("images-idx3", "labels-idx1")
        ]
        for path in paths:
            if not os.path.exists(path):
                raise SystemExit(
                    f"{path} is missing: install dataset-fashion-mnist, or use --source"
                )
        images, labels = map(read_idx, paths)
        folder = os.path.join(destination, channel)
        os.makedirs(folder, exist_ok=True)
        for part, start in enumerate(range(0, len(labels), PER_FILE)):
            chosen = slice(start, start + PER_FILE)
            with tf.io.TFRecordWriter(os.path.join(folder, f"part-{part}.tfrecord")) as writer:
                for image, label in zip(images[chosen], labels[chosen], strict=True):
                    writer.write(example(image, label))
        print(f"{folder}: {len(labels)} images")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default=SOURCE, help="folder of the *.gz files (%(default)s)")
    parser.add_argument("destination", help="folder that gets a folder per channel")
    args = parser.parse_args()
    prepare(args.source, args.destination)


if __name__ == "__main__":
    main()

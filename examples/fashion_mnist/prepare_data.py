"""Turn the Fashion-MNIST files of Debian's dataset-fashion-mnist into two channels.

    prepare_data.py [--source FOLDER] DESTINATION

writes ``DESTINATION/training/data.npz`` (60,000 images) and ``DESTINATION/validation/data.npz``
(10,000). What is there already, and newer than the source, is left as it is.
"""

import argparse
import gzip
import os

import numpy as np

SOURCE = "/usr/share/datasets/fashion-mnist"
CHANNELS = {"training": "train", "validation": "t10k"}


def read_idx(path):
    """Return the array of bytes in an IDX file: magic number, one size per axis, the values."""
    with gzip.open(path, "rb") as file:
        data = file.read()
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes")
    axes = data[3]
    shape = np.frombuffer(data, dtype=">u4", count=axes, offset=4)
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def prepare(source, destination):
    for channel, prefix in CHANNELS.items():
        images = os.path.join(source, f"{prefix}-images-idx3-ubyte.gz")
        labels = os.path.join(source, f"{prefix}-labels-idx1-ubyte.gz")
        for path in (images, labels):
            if not os.path.exists(path):
                raise SystemExit(
                    f"{path} is missing: install dataset-fashion-mnist, or use --source"
                )
        folder = os.path.join(destination, channel)
        target = os.path.join(folder, "data.npz")
        if os.path.exists(target) and os.path.getmtime(target) >= os.path.getmtime(images):
            print(f"{target}: up to date")
            continue
        os.makedirs(folder, exist_ok=True)
        arrays = {"images": read_idx(images), "labels": read_idx(labels)}
        # Beside the channel, not in it: a half-written file must never be taken for data.
        partial = os.path.join(destination, f".{channel}.npz")
        np.savez(partial, **arrays)
        os.replace(partial, target)
        print(f"{target}: {len(arrays['labels'])} images")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default=SOURCE, help="folder of the *.gz files (%(default)s)")
    parser.add_argument("destination", help="folder that holds the channels' folders")
    args = parser.parse_args()
    prepare(args.source, args.destination)


if __name__ == "__main__":
    main()

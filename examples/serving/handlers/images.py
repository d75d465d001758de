"""Write images of the data set as PNG files, named by number and label.

images.py [--count N] DATA.npz FOLDER
"""

import argparse
import os
import struct
import zlib

import numpy as np

LABELS = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip


def png(image):
    """Return an array of gray pixels, uint8 of height x width, as a PNG file."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in image)  # 0: no filter
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("data")
    parser.add_argument("folder")
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    with np.load(args.data) as arrays:
        pairs = zip(arrays["images"][: args.count], arrays["labels"], strict=False)
        for number, (image, label) in enumerate(pairs):
            with open(os.path.join(args.folder, f"{number}-{LABELS[label]}.png"), "wb") as file:
                file.write(png(image))


if __name__ == "__main__":
    main()

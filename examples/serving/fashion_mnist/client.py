"""Ask a server for the labels of images, as JSON and as npy; print how many are right.

client.py [--url URL] [--count N] DATA.npz
"""

import argparse
import io
import json
import time
import urllib.error
import urllib.request

import numpy as np

BATCH = 100
TYPES = {"json": "application/json", "npy": "application/x-npy"}


def wait_until_ready(url, seconds=60):
    """A server answers /ping with 503, or not at all, until its model is loaded."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{url}/ping", timeout=2).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url} is not ready after {seconds} s: {error}") from error
            time.sleep(0.2)


def invoke(url, body, content_type):
    headers = {"Content-Type": content_type, "Accept": content_type}
    request = urllib.request.Request(f"{url}/invocations", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error.code}: {error.read().decode()}") from error


def predict(url, images, form):
    """Return the probabilities of the classes for each image."""
    if form == "json":
        body = json.dumps({"instances": images.tolist()}).encode()
        return np.array(json.loads(invoke(url, body, TYPES[form]))["predictions"])
    buffer = io.BytesIO()
    np.save(buffer, images)  # uint8, a byte for each pixel: the server makes float32 of it
    return np.load(io.BytesIO(invoke(url, buffer.getvalue(), TYPES[form])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://localhost:8080")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("data")
    args = parser.parse_args()
    with np.load(args.data) as arrays:
        images = arrays["images"][: args.count, ..., np.newaxis]
        labels = arrays["labels"][: args.count]
    wait_until_ready(args.url)
    for form in TYPES:
        began = time.perf_counter()
        parts = [
            predict(args.url, images[start : start + BATCH], form)
            for start in range(0, len(images), BATCH)
        ]
        accuracy = (np.concatenate(parts).argmax(axis=1) == labels).mean()
        seconds = time.perf_counter() - began
        print(f"{form}: accuracy: {accuracy:.4f} on {len(images)} images, {seconds:.2f} s")


if __name__ == "__main__":
    main()

"""Count words with nothing but Python; the code of an image that holds the runtime and no more."""

import collections
import json
import os
import pathlib

text = " ".join(
    path.read_text(encoding="utf-8")
    for channel in json.loads(os.environ["SM_CHANNELS"])
    for path in sorted(pathlib.Path(os.environ[f"SM_CHANNEL_{channel.upper()}"]).rglob("*.txt"))
)
counts = collections.Counter(text.split())
model = pathlib.Path(os.environ["SM_MODEL_DIR"], "counts.json")
model.write_text(json.dumps(counts), encoding="utf-8")
print(f"words: {counts.total()}")

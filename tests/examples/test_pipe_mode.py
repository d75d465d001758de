"""Trains the Pipe mode example's script on the real Fashion-MNIST, from FIFOs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.examples.example import FASHION_MNIST, ROOT, metric

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]

EXAMPLE = ROOT / "examples/pipe_mode"
EPOCHS = 2


def feed(folder: Path, channel: str, files: list[Path]) -> threading.Thread:
    """Feed each epoch of a channel, all files in turn, as the platform does it."""

    def epochs() -> None:
        for epoch in range(EPOCHS):
            fifo = folder / f"{channel}_{epoch}"
            if epoch:
                os.mkfifo(fifo)
            with open(fifo, "wb") as pipe:
                fifo.unlink()
                for file in files:
                    pipe.write(file.read_bytes())

    os.mkfifo(folder / f"{channel}_0")
    thread = threading.Thread(target=epochs, daemon=True)
    thread.start()
    return thread


def test_the_script_learns_from_what_is_streamed(tmp_path: Path) -> None:
    source = next(path for path in FASHION_MNIST if path.is_dir())
    bucket, base = tmp_path / "bucket", tmp_path / "ml"
    prepare = (sys.executable, EXAMPLE / "prepare_data.py", "--source", source, bucket)
    subprocess.run(prepare, check=True, timeout=200)
    (base / "input/config").mkdir(parents=True)
    (base / "input/data").mkdir()
    config = (EXAMPLE / "inputdataconfig.json").read_text()
    (base / "input/config/inputdataconfig.json").write_text(config)
    feeders = [
        feed(base / "input/data", channel, sorted((bucket / channel).iterdir()))
        for channel in json.loads(config)
    ]
    done = subprocess.run(
        (sys.executable, EXAMPLE / "source/train.py", "--epochs", str(EPOCHS)),
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SAGEMAKER_BASE_DIR": str(base),
            "SM_MODEL_DIR": str(base / "model"),
            "SM_OUTPUT_DATA_DIR": str(base / "output/data"),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert metric("val_accuracy", done.stdout) >= 0.8
    assert (base / "model/1/saved_model.pb").is_file()
    for feeder in feeders:
        feeder.join(10)
        assert not feeder.is_alive()

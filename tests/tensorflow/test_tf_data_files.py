"""The helpers for channels of files, with the TensorFlow that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagemaker_tensorflow.files import channel_files, tfrecords


def test_files_are_dealt_to_the_workers_in_order_of_name(tmp_path: Path) -> None:
    folder = tmp_path / "a [b]"
    (folder / "deep").mkdir(parents=True)
    for name in ("2.txt", "1.txt", "deep/3.txt", "other"):
        (folder / name).touch()
    every = [str(folder / name) for name in ("1.txt", "2.txt", "deep/3.txt")]
    assert channel_files(str(folder), "**/*.txt") == every
    assert channel_files(str(folder), "**/*.txt", (0, 2)) == every[::2]
    assert channel_files(str(folder), "**/*.txt", (1, 2)) == every[1::2]
    assert channel_files(str(folder), "*.txt", (3, 4)) == []
    with pytest.raises(FileNotFoundError, match="no file matches"):
        channel_files(str(folder), "*.tfrecord")
    with pytest.raises(ValueError, match="from 0 to 1"):
        channel_files(str(folder), shard=(2, 2))


@pytest.mark.tensorflow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")
def test_the_shards_of_tfrecords_are_all_records(tmp_path: Path) -> None:
    import tensorflow as tf

    for number in range(5):
        with tf.io.TFRecordWriter(str(tmp_path / f"{number}.tfrecord")) as writer:
            for record in range(number):
                writer.write(b"%d %d" % (number, record))
    everything = sorted(b"%d %d" % (n, r) for n in range(5) for r in range(n))
    shards = [tfrecords(str(tmp_path), shard=(index, 6)) for index in range(6)]
    assert sorted(r for shard in shards for r in shard.as_numpy_iterator()) == everything
    shuffled = tfrecords(str(tmp_path), shuffle_seed=1)
    assert sorted(shuffled.as_numpy_iterator()) == everything

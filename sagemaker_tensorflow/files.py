"""``tf.data`` for File and FastFile channels."""

import glob
import os

__all__ = ["channel_files", "tfrecords"]


def channel_files(folder, pattern="**", shard=(0, 1)):
    """Return the paths of the files of a channel that match, in order of name.

    ``folder`` is ``os.environ["SM_CHANNEL_<NAME>"]``; ``pattern`` is relative to it, with ``**``
    for any folders. ``shard`` is (index, number): of ``number`` workers each gets every so-many-th
    file; leave it where the channel is ``ShardedByS3Key`` and one process runs per host. Raises
    FileNotFoundError where nothing matches at all, and ValueError.
    """
    index, number = shard
    if not 0 <= index < number:
        raise ValueError(f"shard {shard}: the index must be from 0 to {number - 1}")
    found = glob.glob(os.path.join(glob.escape(folder), pattern), recursive=True)
    files = sorted(path for path in found if os.path.isfile(path))
    if not files:
        raise FileNotFoundError(f"no file matches {pattern!r} in {folder}")
    return files[index::number]


def tfrecords(folder, pattern="**", shard=(0, 1), *, files_at_once=4, shuffle_seed=None):
    """Return a dataset of the TFRecords in the files of a channel, several files in turns.

    The order is the same each time; with ``shuffle_seed`` the files' order changes with each pass.
    ``shard`` is as in ``channel_files``. Raises FileNotFoundError and ValueError.
    """
    import tensorflow as tf

    paths = channel_files(folder, pattern, shard)
    files = tf.data.Dataset.from_tensor_slices(tf.constant(paths, tf.string, [len(paths)]))
    if shuffle_seed is not None:
        files = files.shuffle(max(len(paths), 1), seed=shuffle_seed)
    return files.interleave(
        tf.data.TFRecordDataset,
        cycle_length=files_at_once,
        num_parallel_calls=files_at_once,
        deterministic=True,
    )

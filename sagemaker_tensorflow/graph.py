"""The graphs of ``PipeModeDataset``: TensorFlow decodes what Python has found.

They are kept small: each function in them costs some milliseconds with each iterator.
"""

import tensorflow as tf

__all__ = ["CUT", "Generated", "TFRecords", "lines_or_recordio"]

KEY = tf.TensorSpec([], tf.int64)
TEXT = tf.TensorSpec([], tf.string)
TEXTS = tf.TensorSpec([None], tf.string)
NUMBERS = tf.TensorSpec([None], tf.int64)
FLAG = tf.TensorSpec([], tf.bool)
PLAIN = (TEXT, KEY, KEY, TEXT)
SEALED = (KEY, TEXT, NUMBERS, NUMBERS)
CUT = (TEXTS, TEXT)


class Generated:
    """A dataset of what Python returns, as ``Dataset.from_generator`` without most of its costs.

    ``begin()`` returns a key for an iterator, ``following(key)`` its next element until it raises
    StopIteration, and ``end(key)`` is called when the iterator is done with or dropped. The
    functions live as long as this object.
    """

    def __init__(self, begin, following, end, specs):
        functions = [
            _wrapped(begin, KEY).get_concrete_function(),
            _wrapped(following, *specs).get_concrete_function(KEY),
            _wrapped(end, KEY).get_concrete_function(KEY),
        ]
        self._functions = functions
        self.dataset = _generator([], functions, specs)


def _wrapped(function, *specs):
    def call(*key):
        values = tf.numpy_function(function, key, [spec.dtype for spec in specs])
        for value, spec in zip(values, specs, strict=True):
            value.set_shape(spec.shape)
        return values

    return tf.function(call, autograph=False)


def _generator(arguments, functions, specs):
    first, after, last = functions
    variant = tf.raw_ops.GeneratorDataset(
        init_func_other_args=arguments,
        next_func_other_args=[],
        finalize_func_other_args=[],
        init_func=first,
        next_func=after,
        finalize_func=last,
        output_types=[spec.dtype for spec in specs],
        output_shapes=[spec.shape for spec in specs],
    )
    return tf.data.experimental.from_variant(variant, specs)


def lines_or_recordio(segments):
    """Return the dataset of records that were cut in Python."""
    return segments.map(sound).unbatch()


class TFRecords:
    """The dataset of TFRecords: ``dataset``. The other functions live as long as this object."""

    def __init__(self, epochs):
        self._epochs = epochs
        same = tf.function(lambda key: key, autograph=False).get_concrete_function(KEY)
        self._plain, self._sealed = (
            (same, _wrapped(following, *specs).get_concrete_function(KEY), same)
            for following, specs in ((epochs.plain, PLAIN), (epochs.sealed, SEALED))
        )
        self._opened = Generated(epochs.begin, epochs.opened, epochs.end, (KEY, FLAG))
        # Each dataset that comes after the last unbatching would cost time with each record.
        self.dataset = self._opened.dataset.flat_map(self._records).unbatch()

    @tf.autograph.experimental.do_not_convert
    def _records(self, key, large):
        return tf.cond(large, lambda: self._one_by_one(key), lambda: self._at_once(key))

    def _one_by_one(self, key):
        """Large records: each is read straight to where it stays."""

        @tf.autograph.experimental.do_not_convert
        def decoded(path, number, buffer_bytes, fault):
            # The first one is in the place of what a sealed segment has there. Not to the end of
            # the file: to cut it off would cost the memory behind it.
            records = tf.data.TFRecordDataset(sound(path, fault), buffer_size=buffer_bytes)
            return records.skip(1).take(number)

        # Batches of one are not copied.
        return _generator([key], self._plain, PLAIN).flat_map(decoded).batch(1)

    def _at_once(self, key):
        """Small records: a segment is one record, which is checked and cut; see ``sealing``."""
        damaged = tf.data.Dataset.from_tensors("")

        @tf.autograph.experimental.do_not_convert
        def decoded(key, path, begins, lengths):
            sealed = tf.data.TFRecordDataset(path, buffer_size=0)
            data = sealed.ignore_errors().concatenate(damaged).take(1).get_single_element()

            def good_ones():
                found = tf.numpy_function(self._epochs.examined, [key], [tf.string, tf.string])
                return sound(*found)

            records = tf.cond(
                tf.equal(data, ""), good_ones, lambda: tf.strings.substr(data, begins, lengths)
            )
            records.set_shape([None])
            return records

        # In a thread of its own, beside what takes the records.
        return _generator([key], self._sealed, SEALED).map(decoded).prefetch(1)


@tf.autograph.experimental.do_not_convert
def sound(value, fault):
    """Return ``value``; raise InvalidArgumentError where there is a fault, with its text.

    An exception in a Python function would be an UnknownError with a traceback in its message.
    InvalidArgumentError is what TensorFlow's own decoders make of data that they cannot read.
    """

    def fail():
        with tf.control_dependencies([tf.raw_ops.Assert(condition=False, data=[fault])]):
            return tf.constant(0)

    raised = tf.cond(tf.equal(fault, ""), lambda: tf.constant(0), fail)
    with tf.control_dependencies([raised]):
        return tf.identity(value)

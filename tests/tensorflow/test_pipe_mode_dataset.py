"""``PipeModeDataset`` on real FIFOs, with the TensorFlow that is installed."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.pipe_mode import PipeModeDatasetException
from tests.harness import Base, eventually
from tests.pipes import RECORDIO, Pipes, numbered

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # TensorFlow and Keras warn of themselves
]


@pytest.fixture(scope="module")
def tf() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    return tensorflow


@pytest.fixture
def pipes(tmp_path: Path) -> Iterator[Pipes]:
    with Pipes(tmp_path) as pipes:
        yield pipes


@pytest.fixture
def dataset(tf: Any, pipes: Pipes) -> Callable[..., Any]:
    from sagemaker_tensorflow import PipeModeDataset

    def make(record_format: str, channel: str = "train", **arguments: Any) -> Any:
        return PipeModeDataset(
            channel, record_format, **{**pipes.folders, "timeout_seconds": 60, **arguments}
        )

    return make


@pytest.fixture
def tfrecords(tf: Any, tmp_path: Path) -> Callable[[list[bytes]], bytes]:
    def encode(records: list[bytes]) -> bytes:
        path = tmp_path / "records"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)
        return path.read_bytes()

    return encode


def values(dataset: Any) -> list[Any]:
    return list(dataset.as_numpy_iterator())


def assorted() -> list[bytes]:
    """Small ones, empty ones, and some that are larger than a buffer."""
    source = random.Random(1)
    sizes = [*(source.randrange(3000) for _ in range(5000)), 0, 1, 3_000_000, 9_000_001, 0, 4]
    return [source.randbytes(size) for size in sizes]


def test_it_is_a_dataset_of_strings_of_unknown_number(tf: Any, dataset: Any) -> None:
    made = dataset("TFRecord")
    assert isinstance(made, tf.data.Dataset)
    assert made.element_spec == tf.TensorSpec([], tf.string)
    assert made.cardinality() == tf.data.UNKNOWN_CARDINALITY


@pytest.mark.parametrize("skip", [0, 1])
def test_tfrecords_arrive_whole_and_in_order(
    dataset: Any, pipes: Pipes, tfrecords: Any, skip: int
) -> None:
    records = assorted()
    pipes.feed("train", tfrecords(records))
    assert values(dataset("TFRecord", max_corrupted_records_to_skip=skip)) == records


def test_recordio_arrives_whole_and_in_order(dataset: Any, pipes: Pipes) -> None:
    records = assorted()
    pipes.feed("train", b"".join(map(RECORDIO, records)))
    assert values(dataset("RecordIO")) == records


def test_the_parts_of_a_recordio_record_are_joined(dataset: Any, pipes: Pipes) -> None:
    def part(flag: int, payload: bytes) -> bytes:
        head = struct.pack("<II", 0xCED7230A, flag << 29 | len(payload))
        return head + payload + bytes(-len(payload) % 4)

    pipes.feed("train", RECORDIO(b"one") + part(1, b"a") + part(2, b"bc") + part(3, b"def"))
    assert values(dataset("RecordIO")) == [b"one", b"abcdef"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\r\n\n\nlast", [b"a\r", b"", b"", b"last"]),
        (b"x" * 5_000_000 + b"\n\xff\n", [b"x" * 5_000_000, b"\xff"]),
    ],
    ids=["nothing", "an empty line", "lines", "no end", "a long line"],
)
def test_lines_end_at_line_feeds_only(
    dataset: Any, pipes: Pipes, text: bytes, lines: list[bytes]
) -> None:
    pipes.feed("train", text)
    assert values(dataset("TextLine")) == lines


def test_each_pass_is_the_next_epoch_whatever_makes_it(tf: Any, dataset: Any, pipes: Pipes) -> None:
    pipes.feed("train", *(b"%d\n" % epoch for epoch in range(6)))
    first = dataset("TextLine")
    assert values(first) == [b"0"]
    assert values(first.repeat(2).batch(1).prefetch(2).map(lambda t: t[0])) == [b"1", b"2"]
    assert values(dataset("TextLine")) == [b"3"]
    both = tf.data.Dataset.range(2).interleave(lambda _: first, cycle_length=1)
    assert values(both) == [b"4", b"5"]
    assert (Path(pipes.folders["state_dir"]) / ".train-pipe_mode-state").read_text() == "6"


def test_the_state_outlives_the_process(dataset: Any, pipes: Pipes) -> None:
    Path(pipes.folders["state_dir"]).mkdir()
    (Path(pipes.folders["state_dir"]) / ".train-pipe_mode-state").write_text("7")
    pipes.feed("train", b"seven\n", first=7)
    assert values(dataset("TextLine")) == [b"seven"]


def test_two_channels_are_read_side_by_side(tf: Any, dataset: Any, pipes: Pipes) -> None:
    pipes.feed("train", numbered(5000))
    pipes.feed("validation", numbered(5000))
    pairs = tf.data.Dataset.zip((dataset("TextLine"), dataset("TextLine", "validation")))
    assert values(pairs) == [(b"%d" % n, b"%d" % n) for n in range(5000)]


def test_attributes_come_in_pairs(dataset: Any, pipes: Pipes) -> None:
    pipes.feed("train", b"".join(map(RECORDIO, [b"image 1", b"0", b"image 2", b"1"])))
    pairs = dataset("RecordIO").batch(2).map(lambda t: (t[0], t[1]))
    assert values(pairs) == [(b"image 1", b"0"), (b"image 2", b"1")]


def test_the_first_record_does_not_wait_for_the_last(dataset: Any, pipes: Pipes) -> None:
    more = threading.Event()
    pipes.feed("train", b"first\n", (more, b"second\n"))
    lines = dataset("TextLine").as_numpy_iterator()
    assert next(lines) == b"first"
    more.set()
    assert list(lines) == [b"second"]


@pytest.mark.parametrize("record_format", ["TFRecord", "TextLine"])
def test_an_iterator_that_is_dropped_closes_its_fifo(
    tf: Any, dataset: Any, pipes: Pipes, tfrecords: Any, record_format: str
) -> None:
    endless = tfrecords([b"x" * 100_000] * 200) if record_format == "TFRecord" else b"x\n" * 2**23
    pipes.feed("train", endless)
    taken = values(dataset(record_format).prefetch(1).take(3))
    assert len(taken) == 3
    eventually(lambda: pipes.closed_early == ["train_0"], "the FIFO's end", 60)


@pytest.mark.parametrize("size", [10, 100_000])
def test_an_iterator_is_dropped_while_nothing_comes(
    dataset: Any, pipes: Pipes, tfrecords: Any, size: int
) -> None:
    more = threading.Event()
    pipes.feed("train", tfrecords([b"x" * size]), (more, b"more"))
    records = dataset("TFRecord").as_numpy_iterator()
    assert len(next(records)) == size
    del records
    eventually(lambda: not of_channels(), "the end of the thread", 60)
    more.set()
    pipes.join()
    assert pipes.closed_early == ["train_0"]


def of_channels() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "train_" in thread.name]


def test_no_thread_and_no_file_is_left(dataset: Any, pipes: Pipes) -> None:
    pipes.feed("train", *[numbered(100)] * 12)
    lines = dataset("TextLine")
    values(lines)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        values(lines.take(50))
    values(lines)
    pipes.join()
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "closed files", 60)
    assert not of_channels()


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (b"abcdefgh", r"\[Invalid magic number: 1684234849\. Channel train, epoch 0, byte 12\]"),
        (RECORDIO(b"abcd")[:-1], r"Truncated.*byte 12"),
        (b"\x0a", r"Truncated.*byte 12"),
        (b"a", r"Invalid magic number.*byte 12"),
    ],
    ids=["magic", "payload", "header", "a byte"],
)
def test_broken_recordio_is_an_error_behind_the_good_records(
    tf: Any, dataset: Any, pipes: Pipes, broken: bytes, problem: str
) -> None:
    pipes.feed("train", RECORDIO(b"abc") + broken)
    fails(tf, dataset("RecordIO"), 1, problem)


def fails(
    tf: Any, dataset: Any, good: int, problem: str, kind: str = "InvalidArgumentError"
) -> None:
    records = dataset.as_numpy_iterator()
    for _ in range(good):
        next(records)
    with pytest.raises(getattr(tf.errors, kind), match=problem) as caught:
        next(records)
    # What is wrong and where TensorFlow met it, and nothing about files or tracebacks.
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("position", "skip", "good", "problem"),
    [
        (38 + 3, 0, 2, r"CRC check on header failed\. Channel train, epoch 0, byte 38"),
        (38 + 3, 1, 2, r"CRC check on header failed\. Channel train, epoch 0, byte 38"),
        (38 + 13, 0, 2, r"CRC check on data failed\. Channel train, epoch 0, byte 38"),
        (None, 0, 4, r"Truncated.*byte 76"),
    ],
    ids=["header", "header, skipping", "data", "truncated"],
)
def test_a_broken_tfrecord_is_an_error(
    tf: Any, dataset: Any, pipes: Pipes, tfrecords: Any, position: int | None, skip: int,
    good: int, problem: str,
) -> None:  # fmt: skip
    data = bytearray(tfrecords([b"abc"] * 5))
    if position is None:
        del data[-1]
    else:
        data[position] ^= 1
    pipes.feed("train", bytes(data))
    fails(tf, dataset("TFRecord", max_corrupted_records_to_skip=skip), good, problem)


def test_a_large_tfrecord_that_is_broken_is_an_error(
    tf: Any, dataset: Any, pipes: Pipes, tfrecords: Any
) -> None:
    data = bytearray(tfrecords([b"x" * 100_000] * 5))
    data[200_100] ^= 1
    pipes.feed("train", bytes(data), bytes(data[:-1]))
    fails(tf, dataset("TFRecord"), 2, "corrupted record", "DataLossError")
    fails(tf, dataset("TFRecord", max_corrupted_records_to_skip=1), 3, "Truncated.*byte 400064")


def test_tfrecords_of_any_lengths_arrive_whole(dataset: Any, pipes: Pipes, tfrecords: Any) -> None:
    source = random.Random(2)
    alike = [source.randbytes(100) for _ in range(50_000)]
    mixed = [source.randbytes(source.randrange(200)) for _ in range(50_000)]
    large = [source.randbytes(200_000) for _ in range(30)]
    epochs = [[*alike, *large, *mixed], [*large, *mixed, *alike], []]
    pipes.feed("train", *map(tfrecords, epochs))
    made = dataset("TFRecord")
    for records in epochs:
        assert values(made) == records


def test_corrupted_records_in_a_row_are_skipped_up_to_the_limit(
    tf: Any, dataset: Any, pipes: Pipes, tfrecords: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(tfrecords([b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"]))
    for record in (1, 2, 4, 5):
        data[17 * record + 12] ^= 1
    pipes.feed("train", bytes(data), bytes(data))
    assert values(dataset("TFRecord", max_corrupted_records_to_skip=2)) == [b"a", b"d", b"g", b"h"]
    warning = "WARN: Skipping record (count: {}) because: CRC check on data failed.\n"
    assert "".join(map(warning.format, [1, 2, 1, 2])) in capfd.readouterr().err
    one = dataset("TFRecord", max_corrupted_records_to_skip=1)
    fails(tf, one, 1, r"CRC check on data failed\. Channel train, epoch 1, byte 34")


def test_a_channel_that_is_none_is_refused_at_once(dataset: Any) -> None:
    with pytest.raises(PipeModeDatasetException) as caught:
        dataset("TFRecord", "tarin")
    message = str(caught.value)
    assert message.startswith("Channel tarin not found in Training Job InputDataConfig")
    assert "files, train, validation" in message


def test_a_channel_of_files_is_refused_at_once(dataset: Any) -> None:
    with pytest.raises(PipeModeDatasetException, match="Channel files is not a PipeMode channel"):
        dataset("TFRecord", "files")


def test_arguments_are_checked(tf: Any, dataset: Any, pipes: Pipes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="Invalid record format: tfrecord"):
        dataset("tfrecord")
    with pytest.raises(PipeModeDatasetException, match="can only be set for record_format='TFR"):
        dataset("TextLine", max_corrupted_records_to_skip=1)
    with pytest.raises(FileNotFoundError):
        dataset("TextLine", config_dir=pipes.folders["pipe_dir"])


@pytest.mark.parametrize("made", [False, True], ids=["no FIFO", "no writer"])
def test_waiting_for_an_epoch_has_an_end(tf: Any, dataset: Any, pipes: Pipes, made: bool) -> None:
    path = Path(pipes.folders["pipe_dir"]) / "train_0"
    if made:
        os.mkfifo(path)
    expected = f"{'No process writes to' if made else 'File does not exist:'} {path}"
    with pytest.raises(tf.errors.UnknownError, match=expected):
        values(dataset("TextLine", timeout_seconds=0.2))


def test_the_benchmark_prints_what_the_op_prints(
    dataset: Any, pipes: Pipes, capfd: pytest.CaptureFixture[str]
) -> None:
    pipes.feed("train", b"".join(map(RECORDIO, [b"abc", b"abcde", b"", b"a"])))
    values(dataset("RecordIO", benchmark=True, benchmark_records_interval=2))
    lines = [line for line in capfd.readouterr().out.splitlines() if "PipeModeDatasetOp" in line]
    names = [line.removeprefix("PipeModeDatasetOp::Dataset::Iterator ") for line in lines]
    assert [name.partition(": ")[0] for name in names] == [
        *["records", "records read_time_ns", "records read_bytes"] * 2,
        *["total read_time_ms", "total read_bytes", "total read_GB/s"],
    ]
    assert [names[0], names[2], names[3], names[5], names[7]] == [
        "records: 2", "records read_bytes: 16", "records: 4", "records read_bytes: 12",
        "total read_bytes: 48",
    ]  # fmt: skip


@pytest.mark.parametrize("record_format", ["RecordIO", "TFRecord", "TextLine"])
def test_with_an_interval_of_one_each_record_is_told_of(
    dataset: Any,
    pipes: Pipes,
    tfrecords: Any,
    capfd: pytest.CaptureFixture[str],
    record_format: str,
) -> None:
    records = [b"abc", b"", b"a" * 100_000, b"ab"] * 30
    encoded = {
        "RecordIO": b"".join(map(RECORDIO, records)),
        "TFRecord": tfrecords(records),
        "TextLine": b"".join(record + b"\n" for record in records),
    }
    pipes.feed("train", encoded[record_format])
    assert values(dataset(record_format, benchmark_records_interval=1)) == records
    lines = [line for line in capfd.readouterr().out.splitlines() if "Iterator records" in line]
    numbers = [int(line.rpartition(": ")[2]) for line in lines]
    assert numbers[::3] == list(range(1, len(records) + 1))
    sizes = {"RecordIO": [12, 8, 100_008, 12], "TFRecord": [19, 16, 100_016, 18]}
    assert numbers[2::3] == sizes.get(record_format, [4, 1, 100_001, 3]) * 30
    assert all(number >= 0 for number in numbers[1::3])


@pytest.mark.parametrize("record_format", ["RecordIO", "TFRecord", "TextLine"])
def test_an_epoch_may_be_a_file(
    tf: Any, dataset: Any, pipes: Pipes, tfrecords: Any, record_format: str
) -> None:
    records = assorted() if record_format != "TextLine" else [b"%d" % n for n in range(10_000)]
    encoded = {
        "RecordIO": lambda: b"".join(map(RECORDIO, records)),
        "TFRecord": lambda: tfrecords(records),
        "TextLine": lambda: b"\n".join(records),
    }[record_format]()
    folder = Path(pipes.folders["pipe_dir"])
    (folder / "train_0").write_bytes(encoded)
    (folder / "source").write_bytes(encoded)
    (folder / "train_1").symlink_to("source")
    (folder / "train_2").touch()
    made = dataset(record_format)
    assert [values(made) for _ in range(3)] == [records, records, []]
    assert (folder / "train_0").read_bytes() == encoded
    (folder / "train_3").mkdir()
    with pytest.raises(tf.errors.OpError, match="train_3 is neither a FIFO nor a file"):
        values(made)


def test_looking_at_the_arguments_makes_no_folder(tf: Any, dataset: Any, pipes: Pipes) -> None:
    state = Path(pipes.folders["state_dir"])
    made = dataset("TextLine")
    assert made.element_spec == tf.TensorSpec([], tf.string)
    made.batch(2).map(lambda line: line)
    with pytest.raises(PipeModeDatasetException):
        dataset("TextLine", "files")
    assert not state.exists()
    pipes.feed("train", b"one\n")
    assert values(made) == [b"one"]
    assert state.is_dir()


def test_the_jobs_own_folders_and_channels_are_the_default(
    tf: Any, pipes: Pipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sagemaker_tensorflow import PipeModeDataset

    base = tmp_path / "ml"
    (base / "input").mkdir(parents=True)
    (base / "input/data").symlink_to(pipes.folders["pipe_dir"])
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    monkeypatch.delenv("SM_INPUT_DATA_CONFIG", raising=False)
    with pytest.raises(FileNotFoundError, match=r"ml/input/config/inputdataconfig\.json"):
        PipeModeDataset("train", "TextLine")
    channels = {"train": {"TrainingInputMode": "Pipe"}, "files": {"TrainingInputMode": "File"}}
    monkeypatch.setenv("SM_INPUT_DATA_CONFIG", json.dumps(channels))
    pipes.feed("train", b"one\n")
    assert values(PipeModeDataset("train", "TextLine")) == [b"one"]
    assert (base / "pipe_state/.train-pipe_mode-state").read_text() == "1"
    with pytest.raises(PipeModeDatasetException, match="in SM_INPUT_DATA_CONFIG; read the files"):
        PipeModeDataset("files", "TextLine")
    with pytest.raises(PipeModeDatasetException, match="has these channels: files, train, valid"):
        PipeModeDataset("none", config_dir=pipes.folders["config_dir"])  # an argument counts more
    for text, why in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        monkeypatch.setenv("SM_INPUT_DATA_CONFIG", text)
        with pytest.raises(PipeModeDatasetException, match=f"SM_INPUT_DATA_CONFIG {why}"):
            PipeModeDataset("train")


READS = """
from sagemaker_tensorflow import PipeModeDataset
lines = PipeModeDataset("train", record_format="TextLine")
print([line.decode() for line in lines.repeat(2).as_numpy_iterator()])
"""


def test_a_job_that_is_a_request_alone_needs_no_arguments(base: Base) -> None:
    base.write("source/part", "one\ntwo\n")
    place = {"S3DataType": "S3Prefix", "S3Uri": base.path("source").as_uri() + "/"}
    described = {"ChannelName": "train", "DataSource": {"S3DataSource": place}, "InputMode": "Pipe"}
    base.write("input/config/job.json", {"InputDataConfig": [described]})
    result = base.script(READS).run(seconds=200, TF_CPP_MIN_LOG_LEVEL="3")
    assert result.status == 0, result.log
    assert result.out.decode().split() == ["['one',", "'two',", "'one',", "'two']"]


def test_keras_fits_and_evaluates_on_it(tf: Any, dataset: Any, pipes: Pipes) -> None:
    pipes.feed("train", *[numbered(64)] * 3)
    pipes.feed("validation", *[numbered(32)] * 4)

    def examples(channel: str) -> Any:
        numbers = dataset("TextLine", channel).map(tf.strings.to_number)
        return numbers.map(lambda x: (tf.reshape(x / 64, [1]), x / 32)).batch(8).prefetch(2)

    model = tf.keras.Sequential([tf.keras.Input([1]), tf.keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    validation = examples("validation")
    history = model.fit(examples("train"), epochs=3, validation_data=validation, verbose=0)
    assert len(history.history["val_loss"]) == 3
    assert model.evaluate(validation, verbose=0) > 0
    state = Path(pipes.folders["state_dir"])
    assert (state / ".train-pipe_mode-state").read_text() == "3"
    assert (state / ".validation-pipe_mode-state").read_text() == "4"


def test_importing_the_package_does_not_import_tensorflow() -> None:
    program = "import sys, sagemaker_tensorflow; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run((sys.executable, "-c", program), timeout=60).returncode == 0


def test_all_names_are_exported(tf: Any) -> None:
    names: dict[str, Any] = {}
    exec("from sagemaker_tensorflow import *", names)
    assert names["PipeModeDatasetException"] is PipeModeDatasetException
    assert issubclass(names["PipeModeDataset"], tf.data.Dataset)

"""The plain reader of a Pipe channel, and the count of its epochs, without TensorFlow."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sm_runtime.pipe_mode import CorruptedError, PipeModeDatasetException
from sm_runtime.pipe_mode.framing import masked_crc32c
from sm_runtime.pipe_mode.records import forget_epochs, read_records, take_epoch
from sm_runtime.records import tfrecord as read_tfrecords
from tests.harness import eventually
from tests.pipes import RECORDIO, Pipes, numbered


@pytest.fixture
def pipes(tmp_path: Path) -> Iterator[Pipes]:
    with Pipes(tmp_path) as pipes:
        yield pipes


def tfrecord(data: bytes) -> bytes:
    length = len(data).to_bytes(8, "little")
    crcs = [masked_crc32c(part).to_bytes(4, "little") for part in (length, data)]
    return length + crcs[0] + data + crcs[1]


def test_the_crc_is_that_of_tfrecords() -> None:
    # RFC 3720, B.4: 32 bytes of zeros have the CRC 8A9136AA.
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


@pytest.mark.parametrize(
    ("record_format", "encode"),
    [("RecordIO", RECORDIO), ("TFRecord", tfrecord), ("TextLine", lambda data: data + b"\n")],
    ids=["RecordIO", "TFRecord", "TextLine"],
)
def test_records_come_as_bytes(pipes: Pipes, record_format: str, encode: object) -> None:
    assert callable(encode)
    records = [b"", b"abc", b"x" * 3_000_000, *(b"%d" % n for n in range(3000))]
    pipes.feed("train", b"".join(map(encode, records)), b"")
    for expected in (records, []):
        assert list(read_records("train", record_format, **pipes.folders)) == expected


def test_a_reader_that_is_closed_ends_its_epoch(pipes: Pipes) -> None:
    pipes.feed("train", numbered(2**20), b"next\n")
    lines = read_records("train", "TextLine", **pipes.folders)
    assert next(lines) == b"0"
    del lines
    eventually(lambda: pipes.closed_early == ["train_0"], "the FIFO's end", 60)
    assert list(read_records("train", "TextLine", **pipes.folders)) == [b"next"]


def test_broken_input_names_its_byte(pipes: Pipes) -> None:
    pipes.feed("train", tfrecord(b"abc") + tfrecord(b"abc")[:-1])
    records = read_records("train", "TFRecord", **pipes.folders)
    assert next(records) == b"abc"
    with pytest.raises(CorruptedError, match="ends inside a TFRecord") as caught:
        next(records)
    assert caught.value.offset_bytes == 19


@pytest.mark.parametrize("bad", [0, 3, 4, 69, 70, 98, 99])
def test_a_wrong_header_is_found_wherever_it_is(bad: int) -> None:
    for records in ([b"alike"] * 100, [b"x" * (number % 7) for number in range(100)]):
        encoded = [*map(tfrecord, records)]
        at = sum(map(len, encoded[:bad]))
        data = bytearray(b"".join(encoded))
        assert list(read_tfrecords(io.BytesIO(data))) == records
        data[at + 9] ^= 1
        found = read_tfrecords(io.BytesIO(data))
        assert [next(found) for _ in range(bad)] == records[:bad]
        with pytest.raises(CorruptedError, match=f"byte {at}: CRC check on header failed"):
            next(found)


def test_wrong_arguments_are_refused_at_once(pipes: Pipes) -> None:
    with pytest.raises(PipeModeDatasetException, match="has these channels: files, train, valid"):
        read_records("tarin", **pipes.folders)
    with pytest.raises(PipeModeDatasetException, match="Invalid record format: Text"):
        read_records("train", "Text", **pipes.folders)


def test_a_wait_has_a_deadline(pipes: Pipes) -> None:
    with pytest.raises(TimeoutError, match=r"File does not exist: .*train_0"):
        next(read_records("train", **pipes.folders, timeout_seconds=0.1))


def test_a_file_is_read_as_a_fifo_is(pipes: Pipes) -> None:
    folder = Path(pipes.folders["pipe_dir"])
    (folder / "train_0").write_bytes(tfrecord(b"abc") + tfrecord(b""))
    (folder / "train_1").write_bytes(b"")
    for expected in ([b"abc", b""], []):
        assert list(read_records("train", "TFRecord", **pipes.folders)) == expected


def test_nothing_is_made_before_the_first_record(pipes: Pipes) -> None:
    records = read_records("train", "TextLine", **pipes.folders)
    assert not Path(pipes.folders["state_dir"]).exists()
    pipes.feed("train", b"one\n")
    assert list(records) == [b"one"]


def test_without_arguments_it_is_the_jobs_channel(
    pipes: Pipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ml/input").mkdir(parents=True)
    (tmp_path / "ml/input/data").symlink_to(pipes.folders["pipe_dir"])
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "ml"))
    monkeypatch.setenv("SM_INPUT_DATA_CONFIG", '{"train": {"TrainingInputMode": "Pipe"}}')
    pipes.feed("train", b"one\n")
    assert list(read_records("train", "TextLine")) == [b"one"]
    assert (tmp_path / "ml/pipe_state/.train-pipe_mode-state").read_text() == "1"


def test_epochs_that_are_forgotten_begin_anew(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    forget_epochs(state, "c")  # there are none
    assert [take_epoch(state, "c"), take_epoch(state, "c"), take_epoch(state, "d")] == [0, 1, 0]
    forget_epochs(state, "c")
    assert [take_epoch(state, "c"), take_epoch(state, "d")] == [0, 1]


TAKE = "import sys; from sm_runtime.pipe_mode.records import take_epoch as t\n"
TAKE += "for _ in range(200): print(t(sys.argv[1], 'c'))"


def test_processes_never_take_the_same_epoch(tmp_path: Path) -> None:
    command = (sys.executable, "-c", TAKE, tmp_path)
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    taken = [
        int(line) for process in running for line in process.communicate(timeout=60)[0].split()
    ]
    assert sorted(taken) == list(range(800))
    assert take_epoch(str(tmp_path), "c") == 800


def test_a_state_that_is_no_number_is_named(tmp_path: Path) -> None:
    (tmp_path / ".c-pipe_mode-state").write_text("-1")
    with pytest.raises(ValueError, match=r"\.c-pipe_mode-state: '-1' is no number"):
        take_epoch(str(tmp_path), "c")

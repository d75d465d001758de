"""The reason of a failure, from what a process wrote: tables of texts as they are met."""

from __future__ import annotations

import json
import signal

import pytest

from sm_runtime.job.errors import ConfigError
from sm_runtime.job.failure import Failure, of_error, of_script
from sm_runtime.job.model import Command, Ended
from sm_runtime.job.text import lines, printable

CODE = "/opt/ml/code"
COMMAND = Command(argv=("python3", "train.py", "--a", "b c"), cwd=CODE, env={})
FRAMES = """\
Traceback (most recent call last):
  File "/opt/ml/code/train.py", line 7, in <module>
    main()
  File "/usr/lib/python3.11/lib.py", line 99, in main
    raise
"""


def failure(stderr: str, status: int = 1, *, host: str = "algo-1", stdout: str = "") -> Failure:
    """Return the failure of a process that wrote this; a negative status is a signal's number."""
    ended = Ended(
        status=status if status > 0 else 128 - status,
        signal=-status if status < 0 else None,
        tail=stderr.encode(),
        stdout_tail=stdout.encode(),
    )
    return of_script(ended, COMMAND, host, str)


def reason(found: Failure) -> str:
    """Return the headline without its end, which says the host and the exit status."""
    text, _, end = found.headline().rpartition(" [")
    assert end == f"algo-1, exit {found.status}]"
    return text


AT = "(train.py:7)"
EXCEPTIONS = {
    "a message that begins with a line feed": (
        FRAMES + "ValueError: \nreal reason\n",
        f"ValueError: real reason {AT}",
    ),
    "blanks after the class are gone": (
        FRAMES + "ValueError:\nreal reason\n",
        f"ValueError: real reason {AT}",
    ),
    "a heading": (
        FRAMES + "ValueError: Heading:\nreal reason\n",
        f"ValueError: Heading: real reason {AT}",
    ),
    "a heading, a rule and blank lines": (
        FRAMES + "ValueError: Heading:\n=======\n\n  real reason\nmore\n",
        f"ValueError: Heading: real reason {AT}",
    ),
    "a long heading": (
        FRAMES + f"ValueError: {'Heading ' * 20}:\nreal reason\n",
        f"ValueError: real reason {AT}",
    ),
    "a heading and nothing else": (FRAMES + "ValueError: Heading:\n", f"ValueError: Heading: {AT}"),
    "what is masked": (FRAMES + "ValueError: ***\nmore\n", f"ValueError: *** {AT}"),
    "several lines that say something": (
        FRAMES + "ValueError: first\nsecond\n",
        f"ValueError: first {AT}",
    ),
    "the toolkit's": (
        FRAMES + "sagemaker_training.errors.ExecuteUserScriptError: ExecuteUserScriptError:\n"
        'ExitCode 1\nErrorMessage "ValueError: real reason"\nCommand "/usr/bin/python3 train.py"\n',
        f'ExecuteUserScriptError: ExitCode 1 ErrorMessage "ValueError: real reason" {AT}',
    ),
    "the toolkit's without a message": (
        FRAMES + 'ExecuteUserScriptError: ExecuteUserScriptError:\nExitCode 1\nErrorMessage ""\n'
        'Command "/usr/bin/python3 train.py"\n',
        'ExecuteUserScriptError: ExitCode 1 ErrorMessage "" Command "/usr/bin/python3 train.py" '
        + AT,
    ),
    "PyTorch's state of a model": (
        FRAMES + "RuntimeError: Error(s) in loading state_dict for Net:\n"
        "\tsize mismatch for fc.weight: copying a param\n",
        "RuntimeError: Error(s) in loading state_dict for Net: size mismatch for fc.weight: copying"
        f" a param {AT}",
    ),
    "pydantic's": (
        FRAMES + "pydantic_core._pydantic_core.ValidationError: 1 validation error for Config\n"
        "lr\n  Input should be a valid number [type=float_parsing, input_value='abc']\n",
        f"ValidationError: 1 validation error for Config lr {AT}",
    ),
    "TensorFlow's graph": (
        FRAMES + "tensorflow.python.framework.errors_impl.ResourceExhaustedError: "
        "Graph execution error:\n\n"
        "Detected at node 'dense/MatMul' defined at (most recent call last):\n"
        + '    File "/opt/ml/code/train.py", line 12, in <module>\n      fit()\n' * 30
        + "Node: 'dense/MatMul'\nOOM when allocating tensor with shape[9]\n\t [[{{node x}}]]\n",
        "ResourceExhaustedError: Graph execution error: OOM when allocating tensor with shape[9]"
        f" {AT}",
    ),
    "a message of one long line": (
        FRAMES + f"HorovodInternalError: Horovod has been shut down. {'This was caused ' * 40}\n",
        "HorovodInternalError: Horovod has been shut down. This was caused",
    ),
    "a class without a message, and notes": (
        FRAMES + "AssertionError\na note\n",
        f"AssertionError {AT}",
    ),
    "a class of a function": (FRAMES + "f.<locals>.NanLoss: nan\n", f"NanLoss: nan {AT}"),
    "a class in lower case": (FRAMES + "nan_loss: step 7\n", f"nan_loss: step 7 {AT}"),
    "a class of an own module": (FRAMES + "pkg.errors.nan: 7\n", f"nan: 7 {AT}"),
    "a class with another in parentheses": (
        FRAMES + "ray.exceptions.RayTaskError(ValueError): ray::f()\n",
        f"RayTaskError(ValueError): ray::f() {AT}",
    ),
    "a class of another alphabet": (FRAMES + "Ошибка: плохо\n", f"Ошибка: плохо {AT}"),
    "a traceback's first line in the message": (
        FRAMES + "ValueError: bad\nTraceback (most recent call last):\nx\n",
        f"ValueError: bad {AT}",
    ),
    "a part of a traceback in the message": (
        FRAMES
        + 'ValueError: worker:\nTraceback (most recent call last):\n  File "w.py", line 1\nx\n',
        f"ValueError: worker: x {AT}",
    ),
    "a whole traceback in the message": (
        FRAMES + "RuntimeError: Caught ValueError in DataLoader worker process 0.\n"
        'Original Traceback (most recent call last):\n  File "/opt/ml/code/data.py", line 3, in f\n'
        "    raise\nValueError: bad\n",
        "ValueError: bad (data.py:3)",
    ),
    "a cause": (
        FRAMES + "KeyError: 'k'\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        + FRAMES.replace("7", "9")
        + "RuntimeError: no key\n",
        "RuntimeError: no key (train.py:9)",
    ),
    "a pool's worker": (
        'multiprocessing.pool.RemoteTraceback: \n"""\n'
        + FRAMES.replace("train", "worker")
        + 'ValueError: bad\n"""\n\n'
        "The above exception was the direct cause of the following exception:\n\n"
        + FRAMES
        + "ValueError: bad\n",
        "ValueError: bad (worker.py:7)",
    ),
    "an exception group": (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/opt/ml/code/train.py", line 7, in <module>\n'
        "  |     main()\n"
        "  | ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "/opt/ml/code/train.py", line 2, in a\n'
        "    |     step\n"
        "    | ValueError: bad\n"
        "    +---------------- 2 ----------------\n"
        "    | KeyError: 'k'\n"
        "    +------------------------------------\n",
        "ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions): ValueError: bad;"
        f" KeyError: 'k' {AT}",
    ),
    "a child that failed": (
        FRAMES + "ValueError: bad\n"
        'Traceback (most recent call last):\n  File "/opt/ml/code/run.py", line 2, in <module>\n'
        "subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 1.\n",
        f"ValueError: bad {AT}",
    ),
    "a child without a traceback": (
        FRAMES
        + "subprocess.CalledProcessError: Command '['x']' returned non-zero exit status 1.\n",
        f"CalledProcessError: Command '['x']' returned non-zero exit status 1. {AT}",
    ),
    "torchrun's": (
        "".join(
            f"[rank{rank}]: {line}\n"
            for rank in range(2)
            for line in (FRAMES + f"ValueError: bad {rank}").splitlines()
        )
        + "E0101 12:00:00.000000 12 torch/distributed/elastic/api.py:869] failed (exitcode: 1)\n"
        'Traceback (most recent call last):\n  File "/usr/bin/torchrun", line 8, in <module>\n'
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        f"{'=' * 60}\ntrain.py FAILED\n{'-' * 60}\n",
        f"ValueError: bad 0 {AT}",
    ),
    "torchrun's without more": (
        'Traceback (most recent call last):\n  File "/usr/bin/torchrun", line 8, in <module>\n'
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        f"{'=' * 60}\ntrain.py FAILED\n{'-' * 60}\n",
        "ChildFailedError: train.py FAILED (/usr/bin/torchrun:8)",
    ),
    "Open MPI's lines": (
        "".join(f"[1,3]<stderr>:{line}\n" for line in (FRAMES + "KeyError: 'k'").splitlines()),
        f"KeyError: 'k' {AT}",
    ),
    "colours": (
        "\x1b[31m" + FRAMES.replace('"', '\x1b[35m"') + "\x1b[1;31mValueError\x1b[0m: bad\x07\n",
        "ValueError: bad\\x07",
    ),
    "progress on the same line": (
        "\r 10%\r 20%\r" + FRAMES + "ValueError: a\rb\n",
        f"ValueError: a {AT}",
    ),
    "other kinds of line ends": (
        FRAMES + "ValueError: a\x0bb\x0cc\x1cd\x85e\u2028f\n",
        f"ValueError: a\\x0bb\\x0cc\\x1cd\\x85e\\u2028f {AT}",
    ),
    "noise afterwards": (
        FRAMES + "ValueError: bad\nException ignored in: <function f>\n" + FRAMES + "KeyError: 1\n",
        f"ValueError: bad {AT}",
    ),
    "does not compile": (
        '  File "/opt/ml/code/train.py", line 7\n    def f(:\n          ^\nSyntaxError: invalid\n',
        f"SyntaxError: invalid {AT}",
    ),
}


@pytest.mark.parametrize("case", EXCEPTIONS)
def test_an_exception_is_the_reason(case: str) -> None:
    text, expected = EXCEPTIONS[case]
    found = failure(text)
    assert reason(found).startswith(expected), found.headline()
    assert len(found.text()) <= 1024
    assert found.text() == printable(found.text())


HANDLED = "ERROR:root:handled\n" + FRAMES + "ZeroDivisionError: division\n" + "working\n" * 30
LAST_LINES = {
    "sys.exit": (1, "checksum mismatch\n", "checksum mismatch"),
    "sys.exit after an error that was handled": (1, HANDLED + "mismatch\n", "mismatch"),
    "sys.exit with what is masked": (1, "***\n", "***"),
    "sys.exit with lines": (1, "Cannot train:\n  no data\n", "Cannot train: no data"),
    "argparse": (
        2,
        "usage: train.py [-h] --lr LR\ntrain.py: error: argument --lr: invalid float value: 'x'\n",
        "train.py: error: argument --lr: invalid float value: 'x'",
    ),
    "click": (
        2,
        "Usage: x [OPTIONS]\nTry 'x --help' for help.\n\nError: No such option: --lr\n",
        "Error: No such option: --lr",
    ),
    "typer": (
        2,
        "Usage: x [OPTIONS]\n╭─ Error ────────────╮\n│ No such option: --lr │\n╰────────────╯\n",
        "No such option: --lr",
    ),
    "absl": (
        1,
        "FATAL Flags parsing error:\n  flag --lr=x: could not convert\n"
        "Pass --helpshort or --helpfull to see help on flags.\n",
        "FATAL Flags parsing error: flag --lr=x: could not convert",
    ),
    "Hydra": (
        1,
        "Could not override 'x'.\nKey 'x' is not in struct\n    full_key: x\n\n"
        "Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.\n",
        "Key 'x' is not in struct full_key: x",
    ),
    "Python without the script": (
        2,
        "python: can't open file '/opt/ml/code/x.py': [Errno 2] No such file or directory\n",
        "python: can't open file '/opt/ml/code/x.py': [Errno 2] No such file or directory",
    ),
    "Python without the module": (
        1,
        "python: No module named pkg\n",
        "python: No module named pkg",
    ),
    "Python that cannot start": (
        1,
        "Fatal Python error: init_fs_encoding: failed\nPython runtime state: core initialized\n\n"
        "Current thread 0x00007f (most recent call first):\n  <no Python frame>\n",
        "Fatal Python error: init_fs_encoding: failed",
    ),
    "a shell": (
        127,
        "/opt/ml/code/run.sh: line 3: foo: command not found\n",
        "foo: command not found (run.sh:3)",
    ),
    "dash": (127, "./run.sh: 3: foo: not found\n", "foo: not found (run.sh:3)"),
    "a command line": (127, "bash: line 1: foo: command not found\n", "foo: command not found"),
    "a shell's syntax": (
        2,
        "run.sh: line 4: syntax error near unexpected token `fi'\nrun.sh: line 4: `fi'\n",
        "syntax error near unexpected token `fi' (run.sh:4)",
    ),
    "a shell's last of two": (
        127,
        "run.sh: line 4: foo: command not found\nrun.sh: line 5: bar: command not found\n",
        "bar: command not found (run.sh:5)",
    ),
    "a command of Unix": (
        1,
        "cp: cannot stat 'x': No such file or directory\n",
        "cp: cannot stat 'x': No such file or directory",
    ),
    "git": (128, "fatal: not a git repository\n", "fatal: not a git repository"),
    "a log": (
        3,
        "2024-01-01 12:00:00,123 root ERROR no data in /x\n",
        "2024-01-01 12:00:00,123 root ERROR no data in /x",
    ),
    "R": (1, "Error in f(): object 'x' not found\nExecution halted\n", "Error in f(): object"),
    "a shell that reports a crash": (
        139,
        "run.sh: line 3:  1234 Segmentation fault      (core dumped) python3 x.py\n",
        "the script ended with exit code 139, as after SIGSEGV: 1234 Segmentation fault (core",
    ),
}


@pytest.mark.parametrize("case", LAST_LINES)
def test_the_last_lines_give_the_reason(case: str) -> None:
    status, text, expected = LAST_LINES[case]
    found = failure(text, status)
    assert reason(found).startswith(f"ExecuteUserScriptError: {expected}"), found.headline()


NO_REASON = {
    "nothing": (1, ""),
    "a warning": (1, "/x.py:3: UserWarning: ValueError: ignore me\n  warnings.warn('x')\n"),
    "a warning in a log": (1, "WARNING:root:disk is slow\n"),
    "another in a log": (1, "2024-01-01 12:00:00,123 - trainer - INFO - epoch 3\n"),
    "TensorFlow's information": (
        1,
        "2024-01-01 00:00:00.123456: I tensorflow/core/util/port.cc:113] oneDNN is on\n",
    ),
    "TensorFlow's advice": (
        1,
        "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow\n",
    ),
    "wandb's": (1, "wandb: Find logs at: ./wandb/run-1/logs\n"),
    "progress": (1, "epoch 1:  40%|████      | 4/10 [00:01<00:02,  2.0it/s]\n"),
    "Keras's progress": (1, "10/10 [====] - 1s 2ms/step - loss: 0.5\n"),
    "a metric": (3, "loss: 0.5\n"),
    "a warning, and another status": (3, "UserWarning: ValueError: ignore me\n"),
    "any line, and another status": (3, "good bye\n"),
}


@pytest.mark.parametrize("case", NO_REASON)
def test_what_is_no_reason_is_not_taken_for_one(case: str) -> None:
    status, text = NO_REASON[case]
    expected = f"ExecuteUserScriptError: the script ended with exit code {status}"
    assert reason(failure(text, status)) == expected


def test_standard_output_is_a_reason_only_where_it_looks_like_one() -> None:
    error = failure("", 1, stdout="epoch 3\nERROR: no data\n")
    assert reason(error) == "ExecuteUserScriptError: ERROR: no data"
    other = failure("", 1, stdout="epoch 3\n")
    assert reason(other) == "ExecuteUserScriptError: the script ended with exit code 1"
    assert "epoch 3" in other.text()


ABORT, SEGV, KILL = -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGKILL
STACKS = (
    "\nCurrent thread 0x00007fd7f5696b80 (most recent call first):\n"
    '  File "/usr/lib/python3.11/lib.py", line 99 in f\n'
    '  File "/opt/ml/code/train.py", line 7 in <module>\n\nExtension modules: numpy\n'
)
BY_ABORT, BY_SEGV = "killed by SIGABRT (signal 6)", "killed by SIGSEGV (signal 11)"
SIGNALS = {
    "C++": (
        ABORT,
        "terminate called after throwing an instance of 'std::runtime_error'\n  what():  no GPU\n",
        f"{BY_ABORT}: std::runtime_error: no GPU",
    ),
    "C++ and stacks": (
        ABORT,
        "terminate called after throwing an instance of 'c10::Error'\n  what():  CUDA error: x\n"
        "Exception raised from f at a.cpp:3\nFatal Python error: Aborted\n" + STACKS,
        f"{BY_ABORT}: c10::Error: CUDA error: x {AT}",
    ),
    "C++ without an exception": (
        ABORT,
        "terminate called without an active exception\n",
        f"{BY_ABORT}: terminate called without an active exception",
    ),
    "Python's stacks": (
        SEGV,
        "Fatal Python error: Segmentation fault\n" + STACKS,
        f"{BY_SEGV}: Fatal Python error: Segmentation fault {AT}",
    ),
    "glibc": (ABORT, "working\nfree(): invalid pointer\n", f"{BY_ABORT}: free(): invalid pointer"),
    "glibc's list": (
        ABORT,
        "double free or corruption (out)\n",
        f"{BY_ABORT}: double free or corruption (out)",
    ),
    "the stack protector": (
        ABORT,
        "*** stack smashing detected ***: terminated\n",
        f"{BY_ABORT}: *** stack smashing detected ***: terminated",
    ),
    "an assertion": (
        ABORT,
        "python: a.c:12: f: Assertion `x > 0' failed.\n",
        f"{BY_ABORT}: python: a.c:12: f: Assertion `x > 0' failed.",
    ),
    "TensorFlow's fatal log": (
        ABORT,
        "2024-01-01 00:00:00.123456: F tensorflow/core/x.cc:147] Failed: CUDA_ERROR_NOT_FOUND\n",
        f"{BY_ABORT}: Failed: CUDA_ERROR_NOT_FOUND",
    ),
    "Google's fatal log": (
        ABORT,
        "F0101 12:00:00.000000   123 file.cc:12] Check failed: n == 0 (1 vs. 0)\n*** Check: ***\n",
        f"{BY_ABORT}: Check failed: n == 0 (1 vs. 0)",
    ),
    "NCCL": (
        ABORT,
        "algo-1:12:34 [0] NCCL WARN Error while creating shared memory segment\n",
        f"{BY_ABORT}: algo-1:12:34 [0] NCCL WARN Error while creating shared memory segment",
    ),
    "Rust": (
        ABORT,
        "thread 'main' panicked at src/lib.rs:3:5:\n",
        f"{BY_ABORT}: thread 'main' panicked at src/lib.rs:3:5:",
    ),
    "nothing": (SEGV, "working\n", BY_SEGV),
    "kill -9": (KILL, "free(): invalid pointer\n", "killed by SIGKILL (not OOM)"),
}


@pytest.mark.parametrize("case", SIGNALS)
def test_what_was_written_before_a_signal_is_in_the_reason(case: str) -> None:
    status, text, expected = SIGNALS[case]
    found = failure(text, status)
    assert reason(found) == f"ExecuteUserScriptError: {expected}"
    assert found.signal


def test_an_exception_stays_the_reason_when_the_process_crashes_while_it_ends() -> None:
    text = FRAMES + "ValueError: bad\nterminate called without an active exception\n"
    found = failure(text, ABORT)
    assert reason(found) == f"ValueError: bad; then killed by SIGABRT (signal 6) {AT}"
    assert found.signal == "SIGABRT"


def test_causes_are_named_where_their_tracebacks_find_no_room() -> None:
    deep = FRAMES + '  File "/usr/lib/python3.11/lib.py", line 99, in f\n    f()\n' * 40
    cause = "The above exception was the direct cause of the following exception:"
    context = "During handling of the above exception, another exception occurred:"
    text = f"{deep}KeyError: 'k'\n\n{cause}\n\n{deep}OSError: disk\n\n{context}\n\n{deep}"
    found = failure(text + "RuntimeError: training failed\n")
    lines = found.text().splitlines()
    assert lines[0] == "RuntimeError: training failed (train.py:7) [algo-1, exit 1]"
    assert lines[1:6] == ["phase: train", "KeyError: 'k'", cause, "OSError: disk", context]
    assert lines[-5] == "RuntimeError: training failed"
    assert len(found.text()) <= 1024
    assert found.last_lines[0] == "Traceback (most recent call last):"
    assert "KeyError: 'k'" in found.last_lines


@pytest.mark.parametrize("length", [10, 63, 64, 65, 253])
def test_a_long_name_of_a_host_leaves_the_end_of_the_headline_whole(length: int) -> None:
    host = "h" * length
    found = failure(FRAMES + "ValueError: " + "m" * 300 + "\n", 41, host=host)
    headline = found.headline()
    assert len(headline) <= 200
    assert headline.startswith("ValueError: mmmm")
    shown = host if length <= 64 else "h" * 61 + "..."
    assert headline.endswith(f" {AT} [{shown}, exit 41]")


def test_every_part_of_a_headline_may_be_long() -> None:
    found = Failure(
        name="N" * 300,
        message="m" * 300,
        phase="train",
        status=255,
        file="/".join("f" * 300) + "/end.py",
        line=123456,
        host="h" * 300,
        rank=1023,
    )
    headline = found.headline()
    assert len(headline) <= 200
    assert headline.startswith("NNN")
    assert ": mm" in headline
    assert "/end.py:123456) [rank 1023, hhh" in headline
    assert headline.endswith("hh..., exit 255]")


def test_the_lines_of_a_long_message_are_shortened_before_the_traceback_is() -> None:
    text = failure(FRAMES + "ValueError: begins " + "m" * 100_000 + "\n").text()
    assert len(text) <= 1024
    assert 'File "/opt/ml/code/train.py", line 7' in text
    assert "\nValueError: begins mmm" in text


def test_text_of_other_hosts_holds_no_control_character_either() -> None:
    found = failure(FRAMES + "ValueError: bad\n")
    parts = {**found.as_dict(), "message": "a\x1b[31mb\x00", "last_lines": ["\x9b", "\u202e"]}
    text = Failure.from_dict(json.loads(json.dumps(parts))).text()
    assert text.splitlines()[0].startswith("ValueError: ab\\x00 ")
    assert text.splitlines()[2:-4] == ["\\x9b", "\\u202e"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text\x1b]8;;u\x1b\\link", "textlink"),
        ("\x1b", ""),
        ("\x1b(B\x1b=x\x1bMy", "xy"),
        ("\0\x07\x08\x7f\x80\x9f", "\\x00\\x07\\x08\\x7f\\x80\\x9f"),
        ("é 漢 🙂 \u200d", "é 漢 🙂 \u200d"),
    ],
)
def test_control_characters_are_written_out(given: str, expected: str) -> None:
    assert printable(given) == expected


def test_lines_that_were_written_over_keep_their_first_and_last_state() -> None:
    assert lines("a\r\n\r 1%\r 2%\r 3%\nb\n\nc") == ["a", " 1%", " 3%", "b", "", "c"]


def test_a_message_that_the_headline_cannot_hold_is_in_the_text() -> None:
    found = failure(f"run.sh: line 3: Bus error {'x' * 90}\nworking\n" * 100, -signal.SIGBUS)
    assert "/dev/shm is full" in found.headline()
    assert "x" * 90 not in found.headline()
    assert found.text().splitlines()[2].endswith("Bus error " + "x" * 90)
    error = Failure(name="ConfigError", message="a " * 300 + "end", phase="config", status=1)
    assert error.text().endswith(" end\n")
    long = Failure(name="ConfigError", message="a " * 3000, phase="config", status=1)
    assert len(long.text()) <= 1024


def test_the_text_ends_in_the_form_of_the_toolkit() -> None:
    lines = failure(FRAMES + 'ValueError: says "no"\n').text().splitlines()
    assert lines[-4:] == [
        "ExecuteUserScriptError:",
        "ExitCode 1",
        "ErrorMessage \"says 'no'\"",
        "Command \"python3 train.py --a 'b c'\"",
    ]


def test_only_what_the_user_started_has_that_form() -> None:
    error = of_error(ConfigError("x is missing"), "algo-1", str)
    assert "ExitCode" not in error.text()


def test_a_secret_in_the_command_is_masked() -> None:
    command = Command(argv=("train", "--token", "it's s3cr3t"), cwd="/", env={})
    found = of_script(
        Ended(status=1), command, "a", lambda text: text.replace("it's s3cr3t", "***")
    )
    assert found.text().endswith("Command \"train --token '***'\"")


@pytest.mark.parametrize(
    "module, line",
    [("tensorflow_io", "tensorflow-io==0.36.0"), ("cv2", "opencv-python-headless"), ("mine", None)],
)
def test_a_module_of_awss_images_comes_with_its_line(module: str, line: str | None) -> None:
    found = failure(FRAMES + f"ModuleNotFoundError: No module named '{module}'\n")
    more = f"; AWS's images have it: add {line} to requirements.txt" if line else ""
    assert found.message == f"No module named '{module}'{more}"

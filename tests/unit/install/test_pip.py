"""What pip's output means."""

from __future__ import annotations

from sm_runtime.install.pip import explain


def test_versions_that_pip_left_out_do_not_hide_the_reason() -> None:
    left_out = "; ".join(f"1.{n} Requires-Python >=3.7,<3.11" for n in range(100))
    output = (
        f"ERROR: Ignored the following versions that require a different python version: {left_out}"
        "\nERROR: Could not find a version that satisfies the requirement numpy==99 (from versions:"
        " 1.3, 1.4)\nERROR: No matching distribution found for numpy==99\n"
    )
    assert explain(1, output, "requirements.txt") == (
        "requirements.txt: pip ended with status 1: Could not find a version that satisfies the"
        " requirement numpy==99 (from versions: 1.3, 1.4)"
    )

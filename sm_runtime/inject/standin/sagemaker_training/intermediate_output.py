"""Where intermediate output goes; the runtime itself sends it while the script runs."""

from __future__ import annotations

import os

from . import environment

intermediate_path = environment.output_intermediate_dir
failure_file_path = os.path.join(environment.output_dir, "failure")
success_file_path = os.path.join(environment.output_dir, "success")
tmp_dir_path = os.path.join(intermediate_path, ".tmp.sagemaker_s3_sync")


def start_sync(
    s3_output_location: str | None, region: str | None, endpoint_url: str | None = None
) -> None:
    """Do nothing, as where the platform syncs: there is no process to be joined."""

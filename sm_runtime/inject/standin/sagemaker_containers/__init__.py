"""What the predecessor of SageMaker's training toolkit offers, for jobs without it.

Its modules are those of our ``sagemaker_training``, loaded once more under this name, and a few of
its own that come first.
"""

from __future__ import annotations

import os
from typing import Any

__path__.append(os.path.join(os.path.dirname(__path__[0]), "sagemaker_training"))


def training_env() -> Any:
    """Return the job: its properties are those of ``SM_TRAINING_ENV``."""
    from sagemaker_containers import env

    return env.TrainingEnv()

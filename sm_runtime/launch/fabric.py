"""Which instance types have the Elastic Fabric Adapter (SageMaker training toolkit)."""

from __future__ import annotations

EFA = frozenset(
    {
        "ml.g4dn.8xlarge",
        "ml.g4dn.12xlarge",
        "ml.g5.48xlarge",
        "ml.p3dn.24xlarge",
        "ml.p4d.24xlarge",
        "ml.p4de.24xlarge",
        "ml.p5.48xlarge",
        "ml.trn1.32xlarge",
        "ml.p6e-gb200.36xlarge",
    }
)
"""The types whose traffic between hosts goes through the adapter."""
EFA_RDMA = frozenset(
    {"ml.p4d.24xlarge", "ml.p4de.24xlarge", "ml.trn1.32xlarge", "ml.p6e-gb200.36xlarge"}
)
"""Those whose devices the adapter reads and writes by itself."""

"""A module that own code imports first of all, and that is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sm_runtime.job.errors import CodeError
from sm_runtime.serving import handlers
from sm_runtime.serving.code import OwnCode


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("import json, os\nimport no_such_module.inner\n", "no_such_module"),
        ("'Docs.'\nfrom __future__ import annotations\nfrom no_such import a\n", "no_such"),
        ("import sagemaker_inference, logging\nimport no_such as n\n", "no_such"),
        ("try:\n    import no_such\nexcept ImportError:\n    no_such = None\n", ""),
        ("import sys\nsys.path.append('there')\nimport no_such\n", ""),
        ("import helper\nimport no_such\n", ""),
        ("import package\nimport no_such\n", ""),
        ("import provider_of_a_path\nimport its_module\n", ""),
        ("import provider_of_a_path\nimport no_such\n", "no_such"),
        ("from . import no_such\nimport no_such\n", ""),
        ("if False:\n    import no_such\n", ""),
        ("def handler(data, context):\n    import no_such\n", ""),
    ],
)
def test_a_module_that_is_missing_is_known_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, missing: str
) -> None:
    site = tmp_path / "site"
    (site / "more").mkdir(parents=True)
    (site / "more/its_module.py").touch()
    (site / "provider_of_a_path.py").write_text(
        f"import sys\nsys.path.append({str(site / 'more')!r})\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    monkeypatch.delitem(sys.modules, "provider_of_a_path", raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    code = tmp_path / "code"
    (code / "package").mkdir(parents=True)
    (code / "helper.py").write_text("import sys\nsys.path.append('there')\n")
    (code / "inference.py").write_text(text)
    own = OwnCode(directory=str(code), program=str(code / "inference.py"))
    if not missing:
        handlers.check_imports(own)
        return
    with pytest.raises(CodeError) as caught:
        handlers.check_imports(own)
    assert str(caught.value) == (
        f"{code}/inference.py cannot be imported: there is no module named {missing!r}: add"
        f" {missing} to {code}/requirements.txt"
    )
    assert "inference" not in sys.modules

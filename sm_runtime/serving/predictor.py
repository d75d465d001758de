import json
from typing import Any
from sm_runtime.serving.values import Answer


class Predictor:
    def __init__(self, *a: Any, **k: Any) -> None: ...
    def prepare(self, r: Any) -> Any: ...


def error_answer(e: Exception) -> Answer:
    return Answer(
        status=getattr(e, "status", 500),
        headers={"content-type": "application/json"},
        body=json.dumps({"error": str(e)}).encode(),
    )

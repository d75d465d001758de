"""`sm-runtime export`: reads the request, prints the manifests."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sm_runtime.contract.config_files import read_regular
from sm_runtime.contract.reader import Document
from sm_runtime.export import manifests, options
from sm_runtime.export.asked import of_request
from sm_runtime.export.manifests import Manifest
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.secrets import Mask

if TYPE_CHECKING:
    from argparse import Namespace

log = logging.getLogger(__name__)

SECRET_BYTES = 32
_ESCAPED = "\r\x85\u2028\u2029\ufeff"
"""Other ends of a line than a line feed, which PyYAML writes as they are and reads as blanks, and
the mark that begins some files.
"""


def export(parsed: Namespace, mask: Mask) -> int:
    """Print the manifests of the request in a file; return 1, with sentences, if it is wrong.

    ``parsed`` is the command line, ``mask`` is that of the log.
    """
    path: str = parsed.request
    try:
        data = read_regular(path)
    except ConfigError as error:
        return _complain(error.problems)
    if data is None:
        return _complain((f"{path}: does not exist",))
    # Kubeflow's hosts are called NAME-node-0-0, those of an Indexed Job NAME-0.
    found = of_request(
        Document(path, data), options.choices(parsed), "-node-0" if parsed.kubeflow else ""
    )
    mask.learn(found.secrets)
    for warning in found.warnings:
        log.warning("%s", warning)
    if found.asked is None:
        return _complain(found.problems)
    build = manifests.kubeflow if parsed.kubeflow else manifests.kubernetes
    print(text_of(build(found.asked, _new_secret)), end="")
    return 0


def text_of(documents: Iterable[Manifest]) -> str:
    """Return the documents as YAML; as JSON, which is YAML, too, where PyYAML is missing."""
    try:
        import yaml
    except ImportError:
        return "".join(f"---\n{json.dumps(document, indent=2)}\n" for document in documents)
    dumper: Any = type("Dumper", (yaml.SafeDumper,), {})  # the representer is for it alone
    dumper.add_representer(str, _represent)
    text: str = yaml.dump_all(
        documents,
        Dumper=dumper,
        sort_keys=False,
        allow_unicode=True,
        width=200,
        explicit_start=True,
    )
    return text


def _represent(dumper: Any, text: str) -> Any:
    """Write text of several lines as it stands, where YAML can."""
    style = "|" if "\n" in text else None
    if any(character in text for character in _ESCAPED):
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _new_secret() -> str:
    import secrets

    return secrets.token_urlsafe(SECRET_BYTES)


def _complain(problems: Iterable[str]) -> int:
    for problem in problems:
        log.error("%s", problem)
    return 1

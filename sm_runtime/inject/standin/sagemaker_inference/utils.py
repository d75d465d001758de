"""Small functions around files and headers."""

import re
from typing import Dict, List, Optional

CONTENT_TYPE_REGEX = re.compile("^[Cc]ontent-?[Tt]ype")


def read_file(path: str, mode: str = "r") -> str:
    """Return what a file holds."""
    with open(path, mode) as file:
        return str(file.read())


def write_file(path: str, data: str, mode: str = "w") -> None:
    """Write a file."""
    with open(path, mode) as file:
        file.write(data)


def retrieve_content_type_header(request_property: Dict[str, str]) -> Optional[str]:
    """Return the content type among headers, however its name is written."""
    matching = (key for key in request_property if CONTENT_TYPE_REGEX.match(key))
    return next((request_property[key] for key in matching), None)


def parse_accept(accept: str) -> List[str]:
    """Return the media types of an Accept header."""
    return accept.replace(" ", "").split(",")


def remove_crlf(illegal_string: str) -> str:
    """Return a text with spaces for its line breaks."""
    return illegal_string.replace("\r", " ").replace("\n", " ")

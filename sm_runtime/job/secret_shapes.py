"""What secrets look like by themselves, whatever they are called: a table, and a search by it.

The shapes are those that the scanners detect-secrets and gitleaks know, as far as they differ
from ordinary text. Each has a keyword that is looked for first, since most texts have none: then
nothing has to be compiled or run. No pattern goes back over the same text more than a bounded
number of times: a script may print anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain

_LETTERS = (
    "hf_ api_org_ npm_ dop_v1_ doo_v1_ dor_v1_ shpat_ shpca_ shppa_ shpss_"
    " lin_api_ ntn_ pnu_ rubygems_ sntryu_ sgp_ gsk_ sbp_ CLOJARS_ rdme_ s-s4t2ud- s-s4t2af-"
    " tgp_v1_ sm_aat_ sm_pat_ sm_sat_"
)
"""Prefixes of 16 letters and digits or more."""
_DOUBTFUL = "dapi LTAI AKCp cmVmd p8e- ico- pul- key- EZAK EZTK r8_ pplx- sl-"
"""The same, where what follows has to look random: these may begin a word."""
_WORDS = (
    "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat- gldt- glft- glsoat- glrt- glcbt- glimt- glptt-"
    " glagent- gloas- glffct-"
    " GR1348941 xoxa- xoxb- xoxp- xoxo- xoxs- xoxr- xoxe- xoxe.xox xapp- sk_live_ sk_test_ sk_prod_"
    " rk_live_ rk_test_ rk_prod_ whsec_ AIza GOCSPX- ya29. sq0csp- sq0atp- shippo_live_"
    " shippo_test_ pscale_tkn_ pscale_oauth_ pscale_pw_ PMAK- tk-us- xkeysib- tfp_ hvs. hvb. NRAK-"
    " NRII- NRJS- HRKU-AA nvapi- pcsk_ lsv2_pt_ lsv2_sk_ xai- dp.pt. dt0c01. fio-u- FLWSECK-"
    " FLWSECK_TEST- duffel_live_ duffel_test_ dnkey- sha256~ ATATT3 fo1_ bedrock-api-key-"
    " _gitlab_session= AGE-SECRET-KEY-1"
)
"""Prefixes of what may have dashes, dots and underscores as well."""
_BASE64 = "sntrys_ glc_ glsa_ ops_eyJ fm2_ fm1a_ fm1r_ eyJrIjoi ABSK IQoJb3JpZ2lu FwoGZXIvYXdz"
"""Prefixes of base64."""


class Shape:
    """One kind of secret: group 1 of ``pattern``, or all of it where that has no group."""

    def __init__(
        self, keyword: str, pattern: str, check: Callable[[str], bool] | None = None
    ) -> None:
        self.keyword, self._pattern, self._check = keyword, pattern, check
        self._compiled: re.Pattern[str] | None = None

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where such secrets are."""
        if self._compiled is None:
            self._compiled = re.compile(self._pattern)
        group = min(1, self._compiled.groups)
        for found in self._compiled.finditer(text):
            if self._check is None or self._check(found[group]):
                yield found.span(group)


def _is_mixed(text: str) -> bool:
    """Whether ``text`` has what words lack: a digit, or capital letters between small ones."""
    return any(map(str.isdigit, text)) or (
        text != text.lower() and text != text.upper() and not text.istitle()
    )


def _is_random(text: str) -> bool:
    """Whether ``text`` has a long part that no name would have."""
    parts = re.split(r"[^A-Za-z0-9]", text)
    return any(len(part) >= 16 and _is_mixed(part) for part in parts)


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


def _is_credentials(text: str) -> bool:
    """Whether ``text`` is the base64 of ``user:password``."""
    from base64 import b64decode
    from binascii import Error

    try:
        found = b64decode(text + "=" * (-len(text) % 4), validate=True).decode()
    except (Error, UnicodeDecodeError):
        return False
    return ":" in found and found.isprintable()


def _is_capability(path: str) -> bool:
    """Whether a part of ``path`` is one that cannot be guessed."""
    return any(len(part) >= 8 and _is_mixed(part) for part in re.split(r"[/?&=@]", path))


_NOT_IN_WORD = r"(?<![A-Za-z0-9])"


def _prefixed(prefixes: str, rest: str, check: Callable[[str], bool] | None) -> Iterator[Shape]:
    for prefix in prefixes.split():
        yield Shape(prefix, _NOT_IN_WORD + re.escape(prefix) + rest, check)


_SHAPES = (
    *_prefixed(_LETTERS, r"[A-Za-z0-9]{16,}", None),
    *_prefixed(_DOUBTFUL, r"[A-Za-z0-9]{20,}", _is_random),
    *_prefixed(_WORDS, r"[A-Za-z0-9_.=~+-]{16,}", None),
    *_prefixed(_BASE64, r"[A-Za-z0-9_+/.=%-]{32,}", None),
    # AWS: identifiers of keys.
    *(
        Shape(prefix, rf"(?<![A-Z0-9]){prefix}[A-Z0-9]{{16}}(?![A-Z0-9])")
        for prefix in ("AKIA", "ASIA", "ABIA", "ACCA")
    ),
    Shape("A3T", r"(?<![A-Z0-9])A3T[A-Z0-9]{17}(?![A-Z0-9])"),
    *(
        Shape(
            name,
            name
            + r"[^\n]{0,20}?(?i:key|pwd|pw|pass|token)[^\n]{0,20}?[\"']([A-Za-z0-9/+]{40})[\"']",
            _is_mixed,
        )
        for name in ("aws", "Aws", "AWS")
    ),
    # OpenAI and many others, PyPI.
    Shape("sk-", _NOT_IN_WORD + r"sk-[A-Za-z0-9_-]{16,}", _is_random),
    Shape("pypi-", _NOT_IN_WORD + r"pypi-[A-Za-z0-9_-]{16,}", _is_random),
    # JSON web tokens, plain and encoded once more.
    Shape("eyJ", r"(?<![\w-])eyJ[\w-]{10,}=?=?\.[\w=-]{10,}(?:\.[\w.+/=-]*)?"),
    Shape("ZXlK", _NOT_IN_WORD + r"ZXlK[A-Za-z0-9+/_-]{60,}={0,2}"),
    # A private key in base64: what begins like a certificate or a public key is none.
    Shape(
        "LS0tLS1CRUdJTi",
        r"LS0tLS1CRUdJTi(?!BDRVJUSUZJQ0FUR|BQVUJMSUM)[A-Za-z0-9+/_-]{40,}={0,2}",
    ),
    Shape("SG.", _NOT_IN_WORD + r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    Shape("sl.", _NOT_IN_WORD + r"sl\.[A-Za-z0-9_=-]{100,}"),
    Shape("s.", r"(?<![\w.])s\.[A-Za-z0-9]{24}(?![A-Za-z0-9])", _has_digit),
    Shape("SK", _NOT_IN_WORD + r"SK[a-z0-9]{32}(?![A-Za-z0-9])", _has_digit),
    Shape("AC", _NOT_IN_WORD + r"AC[a-z0-9]{32}(?![A-Za-z0-9])", _has_digit),
    Shape("-us", _NOT_IN_WORD + r"[0-9a-z]{32}-us[0-9]{1,2}(?![A-Za-z0-9])", _has_digit),
    Shape("AKC", _NOT_IN_WORD + r"AKC[A-Za-z0-9]{10,}", _is_mixed),
    Shape("AP", _NOT_IN_WORD + r"AP[0-9ABCDEF][A-Za-z0-9]{8,}(?![A-Za-z0-9])", _is_random),
    Shape("EAA", _NOT_IN_WORD + r"EAA[AMC][A-Za-z0-9_-]{40,}", _is_random),
    Shape("A3-", _NOT_IN_WORD + r"A3-[A-Z0-9]{6}-[A-Z0-9]{5,11}(?:-[A-Z0-9]{5,6}){3,4}"),
    Shape("Q~", r"(?<![\w.~])[\w.~]{3}[0-9]Q~[\w.~-]{31,34}"),
    Shape("_mmk", _NOT_IN_WORD + r"[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk"),
    Shape(".atlasv1.", _NOT_IN_WORD + r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,}"),
    Shape("v1.0-", _NOT_IN_WORD + r"v1\.0-[a-f0-9]{24}-[a-f0-9]{100,}"),
    Shape("API-", _NOT_IN_WORD + r"API-[A-Z0-9]{26}(?![A-Za-z0-9])", _has_digit),
    Shape("4b1d", _NOT_IN_WORD + r"4b1d[A-Za-z0-9]{38}(?![A-Za-z0-9])"),
    Shape("t1.", _NOT_IN_WORD + r"t1\.[A-Za-z0-9_-]{1,100}={0,2}\.[A-Za-z0-9_-]{86}={0,2}"),
    Shape("AQVN", _NOT_IN_WORD + r"AQVN[A-Za-z0-9_-]{35,38}"),
    Shape("YC", _NOT_IN_WORD + r"YC[A-Za-z0-9_-]{38}(?![A-Za-z0-9])", _is_random),
    *(
        Shape(kind, _NOT_IN_WORD + kind[:3] + r"\.[\w-]{22}\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{20}")
        for kind in ("pat.", "sat.")
    ),
    Shape(
        ".acc", r"(?<![\w.])(?:sc|ext|scauth|authress)_[\w.]{10,40}\.acc[_-][\w-]{10,32}\.\S{30,}"
    ),
    Shape("|", r"(?<![0-9])[0-9]{15,16}\|[A-Za-z0-9_-]{27,40}(?![A-Za-z0-9_-])"),
    # Bots of Telegram and Discord.
    Shape(":", r"(?<![0-9])[0-9]{8,10}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])", _is_mixed),
    Shape(
        ".",
        r"(?<![\w-])[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}(?![\w-])",
        _is_mixed,
    ),
    # Passwords in URLs, and keys in the place of a user.
    Shape("://", r"://[^/\s:@\"']{0,200}:([^/?#\s\"']{4,}(?=@))"),
    Shape("://", r"://([A-Za-z0-9_-]{16,})@", _is_random),
    # Addresses that are secret themselves.
    Shape(
        "ook",
        r"://[^\s\"'<>\\]{0,200}?(?<![A-Za-z0-9-])(?:[Ii]ncoming)?(?:[Ww]eb)?[Hh]ooks?(?:b2)?"
        r"(?:\.[\w.-]{1,100})?/([^\s\"'<>\\]+)",
        _is_capability,
    ),
    Shape("hooks.slack.com", r"hooks\.slack\.com/([^\s\"'<>\\]+)"),
    Shape("/with/key/", r"/with/key/([A-Za-z0-9_-]{10,})"),
    Shape("pagerduty.com", r"pagerduty\.com/(?:integration|x-ere)/([A-Za-z0-9]{16,})"),
    Shape("softlayer.com", r"softlayer\.com/soap/v3(?:\.1)?/([a-z0-9]{64})"),
    # Headers.
    Shape("earer", r"(?i:\bbearer)\s{1,3}([A-Za-z0-9_.~+/=-]{8,})", _is_mixed),
    Shape("EARER", r"(?i:\bbearer)\s{1,3}([A-Za-z0-9_.~+/=-]{8,})", _is_mixed),
    Shape("asic", r"\b[Bb]asic\s{1,3}([A-Za-z0-9+/]{8,}={0,2})", _is_credentials),
    Shape("curl", r"\bcurl\b[^\n]{0,300}?\s(?:-u|--user)[ =][\"']?[^\s:\"']{1,100}:([^\s\"']{4,})"),
)


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the beginning and the end of each secret in ``text``, in no order."""
    found = (shape.spans(text) for shape in _SHAPES if shape.keyword in text)
    return chain(chain.from_iterable(found), _private_keys(text))


_BEGINS = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}|PuTTY-User-Key-")
_ENDS = re.compile(
    r"-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}|Private-MAC: ?[0-9a-f]*"
)
_KEY_CHARACTERS = 2**14
"""No private key is longer, however it is written."""
_KEY_BODY = re.compile(
    r"(?:\s{0,4}[A-Z][A-Za-z-]{2,30}: [^\n\\]{0,200}|[^A-Za-z0-9+/=]{0,16}[A-Za-z0-9+/=]{16,})+"
    r"(?:[^A-Za-z0-9+/=]{0,16}[A-Za-z0-9+/=]{1,15})?"
)
"""Headers and base64, as much as there is: the last line is shorter."""
_BODY_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\\\r\n\t"
_LINE_OF_KEY = r"[A-Za-z0-9+/=]{64}"
_CUT_OFF = re.compile(
    rf"[A-Za-z0-9+/=]{{0,63}}\n(?:{_LINE_OF_KEY}\n){{2,}}|(?:{_LINE_OF_KEY}\n){{2,}}"
)
"""Lines of a private key at the beginning of a text, where its first line is cut off."""


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    """Yield where private keys are, whole ones and those whose beginning or end is cut off."""
    position = 0
    if any(word in text for word in ("PRIVATE KEY", "PuTTY", "Private-MAC")):
        for end in _ENDS.finditer(text):
            first = max(position, end.start() - _KEY_CHARACTERS)
            begin = _BEGINS.search(text, first, end.start())
            if begin:
                yield begin.start(), end.end()
            else:
                body = text[first : end.start()]
                yield first + len(body.rstrip(_BODY_CHARACTERS)), end.end()
            position = end.end()
        for begin in _BEGINS.finditer(text, position):
            rest = _KEY_BODY.match(text, begin.end(), begin.end() + _KEY_CHARACTERS)
            yield begin.start(), rest.end() if rest else begin.end()
    cut = _CUT_OFF.match(text)
    if cut and not re.fullmatch(r"[0-9a-f\n]+|[A-Za-z\n]+", cut[0]):
        yield cut.span()

"""Hyperparameters that a shell, or a careless launcher, would make something else of."""

HOSTILE = {
    "key": "a b",
    "q": 'it\'s "x"',
    "z": "$(touch PWN)",
    "e": "",
    "nl": "a\nb",
    "semi": "; touch PWN",
    "tick": "`touch PWN`",
    "star": "*",
    "hash": "# x",
    "uni": "h\u00e9 \u6f22 \U0001d11e",
    "back": "a\\nb\\",
    "dash": "--other",
    "space ": " lead and trail ",
    "pa'th": "../../x",
}

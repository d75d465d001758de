"""Slurm's lists of nodes, and what they stand for: as ``scontrol show hostnames`` says."""

from __future__ import annotations

LISTS = {
    "n1": "n1",
    "n[1-3,7],m02": "n1 n2 n3 n7 m02",
    "n[01-03]": "n01 n02 n03",
    "n[9-11]": "n9 n10 n11",
    "n[09-11]": "n09 n10 n11",
    "n[099-101]": "n099 n100 n101",
    "n[1-02]": "n1 n2",
    "n[001-2]": "n001 n002",
    "n[0-0]": "n0",
    "a[1-2]b[3-4]": "a1b3 a1b4 a2b3 a2b4",
    "n[1-2][3-4]": "n13 n14 n23 n24",
    "n[1-2]x[5],z": "n1x5 n2x5 z",
    "rack[1-2]node[08-11]": (
        "rack1node08 rack1node09 rack1node10 rack1node11"
        " rack2node08 rack2node09 rack2node10 rack2node11"
    ),
    "gpu-a100.eu-[1,3-4]": "gpu-a100.eu-1 gpu-a100.eu-3 gpu-a100.eu-4",
    "[1-3]": "1 2 3",
    "n[1-2],": "n1 n2",
    "n1,,n2": "n1 n2",
    " n1 , n2": "n1 n2",
    "n1,n2,n1": "n1 n2 n1",
}
WRONG = ("n[3-1]", "n[]", "n[1,,2]", "n[a-b]", "n[1-100000]")
"""What ``scontrol`` refuses, too."""

"""Turn scikit-learn's diabetes data (442 real patients) into two channels of CSV files.

    prepare_data.py DESTINATION

writes ``DESTINATION/training/diabetes.csv`` and ``DESTINATION/validation/diabetes.csv``: a row of
names, then ten measurements and, last, the progression of the disease one year later. Every
fifth patient of a fixed shuffle goes to validation, so each run writes the same bytes.
"""

import argparse
import os

import numpy as np
from sklearn.datasets import load_diabetes


def prepare(destination):
    data = load_diabetes(scaled=False)
    table = np.column_stack([data.data, data.target])
    table = table[np.random.default_rng(0).permutation(len(table))]
    held_out = np.arange(len(table)) % 5 == 0
    header = ",".join([*data.feature_names, "progression"])
    for channel, rows in (("training", table[~held_out]), ("validation", table[held_out])):
        folder = os.path.join(destination, channel)
        os.makedirs(folder, exist_ok=True)
        target = os.path.join(folder, "diabetes.csv")
        np.savetxt(target, rows, delimiter=",", fmt="%.10g", header=header, comments="")
        print(f"{target}: {len(rows)} patients")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("destination", help="folder that holds the channels' folders")
    prepare(parser.parse_args().destination)


if __name__ == "__main__":
    main()

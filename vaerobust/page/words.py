"""Names of the data sets, which all chapters write in the same way."""

DATASETS = {"mnist": "MNIST", "fashion-mnist": "fashion-MNIST"}
"""The names of the data sets as the book writes them."""

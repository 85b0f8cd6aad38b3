"""Words that all chapters share."""

DATASETS = {"mnist": "MNIST", "fashion-mnist": "fashion-MNIST"}
"""The names of the data sets as the book writes them."""

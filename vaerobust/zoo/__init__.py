"""The zoo: the data sets, the trained models that ship, and how they were trained.

Start at :func:`vaerobust.zoo.data.load` for images and at :func:`vaerobust.zoo.weights.pretrained` for models.

``data``, ``downloads``
    MNIST and fashion-MNIST, and the sources that they are fetched from.
``protocol``
    Which models there are, and in what each of them differs from the paper's protocol (Appendix F).
``training``
    Training by that protocol.
``weights``, ``manifest``
    Trained models on disk: their weights, and how they were trained.
``files``, ``machine``, ``typed_json``
    Tools: writing files and their digests; the machine and its versions; dataclasses as JSON.

Nothing here measures robustness.
"""

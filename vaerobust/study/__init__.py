"""The study: what was measured on many models, how, and how long things take.

Start at :func:`vaerobust.study.summaries.load`, which reads what is stored of a model.

``records``
    What a summary holds: one dataclass for each kind.
``summaries``
    Summaries on disk; the files are in the folder ``stored``.
``measurements``
    How each kind of summary is measured, and of which models.
``choices``
    Our own choices about margins, varied one at a time.
``encoder``
    Statistics of an encoder over images.
``timing``, ``growth``, ``benchmarks``, ``equal_error``
    Our functions timed against alternatives, and how their cost grows with points, samples and latents.

The quantities themselves are defined elsewhere: in the paper's modules, and beyond the paper in
:mod:`vaerobust.certify`.
"""

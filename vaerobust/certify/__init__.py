"""Beyond the paper: guarantees for the margin of Eq. 4, where Theorem 1 leaves out higher-order terms.

Begin with :func:`vaerobust.certify.certificates.certified_margin`. It returns, with a stated confidence, a radius
within which no perturbation breaks r-robustness. Chapter 5 of the book states and proves what the code computes, and
comments in the code name the lemmas by the chapter's labels.

The rooms, in the order in which one builds on the other:

encoder_shift
    How far a perturbation can move the encoder's mean. Nothing here is random.
safe_shift
    How far noise may be shifted before it fails with probability 1/2, from upper limits on what fails.
failures
    What samples say about the noise that fails: their sums, and upper confidence limits.
certificates
    The three joined: a certified radius for a given r, and a certified r for a given radius.
curves
    The least r for each size of perturbation, between a certificate and an attack.
both_sides
    All bounds on the margin at the same points, from below and from above.
violations
    A search for perturbations that would refute a certificate.

Attacks alone, without certificates, are in :mod:`vaerobust.attacks` and :mod:`vaerobust.margins`.
"""

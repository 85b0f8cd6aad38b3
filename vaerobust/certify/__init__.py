"""Beyond the paper: guarantees for the margin of Eq. 4, where Theorem 1 leaves out higher-order terms.

Begin with :func:`vaerobust.certify.certificates.certified_margin`. It returns, with a stated confidence, a radius
within which no perturbation breaks r-robustness. Chapter 5 of the book states and proves what the code computes.
Comments in the code name lemmas and theorems by their labels in that chapter, as in lem-shift; only lem-half-space is
in chapter 2. The notation is the lemmas': J is the encoder's Jacobian, J' its transpose, S = diag(sigma), and the
whitened mean is S^-1 mu. A shift is a change of the whitened mean, and so a shift of the noise eta.

The modules, in the order in which one builds on the other:

encoder_shift
    How far a perturbation can move the encoder's mean. Nothing here is random.
safe_shift
    How far noise may be shifted before it fails (D > r) with probability 1/2, from limits on the noise that fails.
failures
    What samples say about the noise that fails: its number and moments, with upper confidence limits.
certificates
    The three joined: a certified radius for a given r, and a certified r for a given radius. Begin here.
curves
    The least r for each size of perturbation, between a certificate and an attack.
both_sides
    All bounds on the margin at the same points, from below and from above.
violations
    A search for perturbations that would refute a certificate.

Attacks alone, without certificates, are in :mod:`vaerobust.attacks` and :mod:`vaerobust.margins`.
"""

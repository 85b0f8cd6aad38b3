"""Measure any VAE: wrap it, check it, measure every bound on its margins, and write a report."""

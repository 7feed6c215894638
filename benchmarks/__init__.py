"""Benchmarks: `dnd bench …` runs ours and a plain baseline in turns, in one process, and prints their ratio.

Machines are noisy: only ratios of one run mean anything, never the absolute rates beside them.
"""

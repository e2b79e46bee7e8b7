"""A script for each claim: `python -m benchmarks.NAME` measures ours and the peers' in one run and updates `results/NAME.json`."""

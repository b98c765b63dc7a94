"""What was measured: benchmarks over time, quality against size, coverage of datasets."""

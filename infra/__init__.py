"""The `dnd` command, demo, report, benchmarks and cluster files. Nobody imports this floor."""

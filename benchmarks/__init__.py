"""The benchmarks: one file each; the file's stem is its name, BENCHMARK its value."""

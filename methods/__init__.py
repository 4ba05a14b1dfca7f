"""The methods: one file each; the file's stem is its name."""

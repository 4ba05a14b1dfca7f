"""How toy models are pretrained: what `kdbench models train` runs."""

"""How the mini zoo's stand-ins come by their weights: what `kdbench models train` runs."""

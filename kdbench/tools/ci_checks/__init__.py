"""`kdbench check`: what a project's CI checks, one module a kind of check. Only smoke and contract import torch."""

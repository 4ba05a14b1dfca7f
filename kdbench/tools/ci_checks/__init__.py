"""`kdbench check`: what a project's CI gates on, one gate a file. Only smoke and contract import torch."""

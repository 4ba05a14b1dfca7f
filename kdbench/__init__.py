"""kdbench: knowledge distillation for domain-generalised semantic segmentation, under one protocol."""

from kdbench.threads import wait_passively

__version__ = "0.1.0"

wait_passively()

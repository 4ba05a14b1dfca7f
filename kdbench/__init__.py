"""kdbench: knowledge distillation for domain-generalised semantic segmentation, under one protocol."""

__version__ = "0.1.0"

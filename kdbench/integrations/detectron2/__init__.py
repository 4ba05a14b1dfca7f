"""detectron2: kdbench's domains in its catalogs, its semantic FPN as a student, its evaluator on kdbench's models."""

# First, because it says in a sentence where detectron2 is missing.
from kdbench.integrations.detectron2.student import FPNEncoder, SemanticFPN, student_from_config  # isort: skip
from kdbench.integrations.detectron2.catalog import PREFIX, load_label, register, register_samples
from kdbench.integrations.detectron2.scoring import evaluate

__all__ = [
    "PREFIX", "FPNEncoder", "SemanticFPN", "evaluate", "load_label", "register", "register_samples",
    "student_from_config",
]  # fmt: skip

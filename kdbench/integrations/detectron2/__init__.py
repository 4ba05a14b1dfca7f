"""detectron2: our domains in its catalogs, its semantic FPN as a student, its evaluator on our models."""

from kdbench.errors import KdbenchError

try:
    import detectron2.evaluation
    import detectron2.modeling  # noqa: F401
except ImportError as error:
    raise KdbenchError(
        f"detectron2 cannot be imported ({error}): install it from its repository with `pip install "
        "--no-build-isolation git+https://github.com/facebookresearch/detectron2`."
    ) from error

from kdbench.integrations.detectron2.catalog import PREFIX, load_label, register, register_samples
from kdbench.integrations.detectron2.scoring import evaluate
from kdbench.integrations.detectron2.student import FPNEncoder, SemanticFPN, student_from_config

__all__ = [
    "PREFIX", "FPNEncoder", "SemanticFPN", "evaluate", "load_label", "register", "register_samples",
    "student_from_config",
]  # fmt: skip

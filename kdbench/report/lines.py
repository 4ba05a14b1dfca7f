"""One line a cell, as a run prints them."""

from __future__ import annotations

from kdbench.metrics import domain_miou, domains, role_miou
from kdbench.names import model_name
from kdbench.records import Record


def result_line(record: Record, cached: bool) -> str:
    """Benchmark, pair, method, mIoU of every target, their mean and the source's, and how long it took."""
    cell = record.spec.resolved
    method = f"{cell.method}[{cell.variant}]" if cell.variant else cell.method
    teacher, student = (model_name(name, cell.model_set) if name else "-" for name in (cell.teacher, cell.student))
    head = f"{cell.benchmark:<7} {teacher} -> {student:<13} {method:<16} seed {cell.seed}"
    if record.result is None:
        return f"{head}  FAILED: {record.error}"
    each = " ".join(f"{domain_miou(domain):5.1f}" for domain in domains(record, "target"))
    source = f"  source {role_miou(record, 'source'):5.1f}" if domains(record, "source") else ""
    time = "done before" if cached else f"{record.run.seconds:.0f} s"
    return f"{head}  mIoU {role_miou(record, 'target'):5.1f} ({each}){source}  {time}"

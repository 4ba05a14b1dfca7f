"""What records say: one data frame, and boards, tables and pages made of it. Starts without torch."""

from kdbench.report.frame import load_results, loss_frame

__all__ = ["load_results", "loss_frame"]

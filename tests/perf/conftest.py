"""What a benchmark leaves in a file: its figures, without the name and the clocks of the machine that made them."""

from __future__ import annotations

from typing import Any


def pytest_benchmark_update_json(config: Any, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Keeps the ratios: times in seconds are another machine's business."""
    cpu = output_json["machine_info"].get("cpu", {})
    output_json["machine_info"] = {"cpu": cpu.get("brand_raw", "")}
    output_json.pop("commit_info", None)
    output_json["benchmarks"] = [
        {"name": entry["name"], "extra_info": entry["extra_info"]} for entry in output_json["benchmarks"]
    ]

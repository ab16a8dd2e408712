"""Prints what the stages wrote, in few lines: `python benchmarks/gpu/summary.py FOLDER`. Needs Python alone.

Exits with 1 where a stage did not come to its end, a result is wrong, or a row failed for a reason nobody foresaw.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]

COLUMNS = {
    "right": ("case", "dtype", "mask", "route", "worst", "error", "limit"),
    "steps": ("model", "compiled", "method", "tokens", "images", "ratio", "memory_ratio"),
    "kernels": ("operator", "way", "tokens", "forward_ms", "forward_gain", "forward_limit", "backward_ms",
                "backward_gain", "backward_limit", "graph_ms"),
    "training": ("code", "method", "model", "images", "batch_size", "images_per_second", "data_wait", "memory"),
    "precision": ("case", "test_loss", "test_accuracy", "from_float32", "error", "said"),
}  # fmt: skip


def main(folder: Path) -> bool:
    """Print all stages; whether everything is as it should be."""
    good = True
    for path in sorted(folder.glob("[a-z]-*.json")):
        content = json.loads(path.read_text())
        good &= stage(content)
    return good


def stage(content: dict[str, Any]) -> bool:
    """Print one stage; whether it is as it should be."""
    rows: list[Row] = content["rows"]
    wrong = [row for row in rows if row.get("ok") is False or "failed" in row]
    right = sum(row.get("ok", False) for row in rows)
    left_out = [row for row in rows if "left_out" in row]
    state = "finished" if content["finished"] else f"NOT FINISHED {content.get('failed', '')}"
    counts = f"{len(rows)} rows, {right} checked and right, {len(wrong)} wrong or failed, {len(left_out)} left out"
    print(f"\n== {content['stage']}: {state}; {counts}")
    where = f"{content['card']}, torch {content['versions']['torch']}"
    print(f"   {where}, commit {content['commit'][:12]}, {content['date']}")
    limits = [f"{key} {content[key]:.4g}" for key in ("matrix_tflops", "copy_gbytes_per_second") if key in content]
    print("".join(f"   {line}\n" for line in limits), end="")
    name = content["stage"]
    shown = wrong if name == "right" else [row for row in rows if "left_out" not in row]
    for line in table(shown, COLUMNS[name]):
        print(line)
    for reason in dict.fromkeys(row["left_out"] for row in left_out):
        print(f"   left out {sum(row.get('left_out') == reason for row in left_out)}: {reason[:150]}")
    return content["finished"] and not wrong


def table(rows: list[Row], columns: tuple[str, ...]) -> list[str]:
    """The columns that any row has, padded; errors instead of figures where a row failed."""
    kept = [column for column in columns if any(column in row for row in rows)]
    lines = [kept] if rows else []
    lines += [[cell(row.get(column)) for column in kept] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(kept))] if lines else []
    text = ["   " + " ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)) for line in lines]
    for index, row in enumerate(rows, start=1):
        text[index] += f" FAILED {row['failed'][:150]}" if "failed" in row else ""
    return [line.rstrip() for line in text]


def cell(value: Any) -> str:
    """Four digits are enough."""
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.removeprefix("timm/")[:40]


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1])))

"""The benchmark's report."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

COLUMNS = (
    "row | pictures/s | spread | ms per step | of it the model | first, s | x diffusers | x one process | "
    "TFLOP per picture | of the peak | memory, GiB"
)


def found(rows: list[dict], row: str) -> dict | None:
    """A row by its name, if it was measured."""
    return next((each for each in rows if each["row"] == row and "error" not in each), None)


def machine(cuda: bool) -> dict:
    """The machine and versions of the measurement."""
    import diffusers

    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "cores": os.cpu_count(),
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "diffusers": diffusers.__version__,
    }


def _processor() -> str:
    """The processor's name, which `platform` does not give on Linux."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "CPU"


def markdown(report: dict) -> str:
    """The report as Markdown."""
    rows = report["rows"]
    where = report["machine"]
    lines = [
        f"{where['device']}, {where['cores']} cores, PyTorch {where['torch']}, CUDA {where['cuda'] or 'none'}, "
        f"cuDNN {where['cudnn'] or 'none'}, diffusers {where['diffusers']}."
    ]
    peak = found(rows, "peak")
    if peak:
        lines[0] += f" bf16 matrix product {peak['tflops']:.3g} TFLOP/s, copy {peak['copy_tb_per_second']:.2f} TB/s."
    lines += table(COLUMNS, [cells(row, rows, peak) for row in with_speeds(rows)])
    for row in rows:
        if row["row"].startswith("loop:") and "busy" in row:
            lines.append(
                f"`{row['row']}`: pairs are made at {row['pairs_made_per_second']:,.0f}/s, each used {row['reuse']} "
                f"times; kernels run {row['busy']:.1%} of the time, the longest gap is {row['longest_gap_ms']:.2f} ms."
            )
        elif "prepare_ms" in row:
            other = row.get("difference_of_255")
            lines.append(
                f"`{row['row']}`: {row['prepare_ms']:.0f} ms before the drawing, {row['finish_ms']:.0f} after it."
                + ("" if other is None else f" At most {other:.2g} of 255 from plain steps.")
            )
        elif "groups_ms" in row:
            lines.append(f"`{row['row']}`: {row['kernels_per_step']} kernels per step, {row['busy']:.1%} of the time.")
            lines += table("kernels | ms per step", [[name, f"{ms:.2f}"] for name, ms in row["groups_ms"].items()])
            lines += table(
                "the longest | ms per step", [[f"`{name}`", f"{ms:.2f}"] for name, ms in row["top_ms"].items()]
            )
        elif "peaks" in row:
            lines.append(f"`{row['row']}`: {row['gib_fixed']:.1f} GiB + {row['gib_per_picture']:.2f} GiB per picture.")
            lines += table(
                "batch | allocated, GiB | reserved, GiB",
                [[size, f"{p['allocated_gib']:.1f}", f"{p['reserved_gib']:.1f}"] for size, p in row["peaks"].items()],
            )
            lines += table(
                "card | largest batch that fits | fails at",
                [[card, found["fits"] or "none", found["fails"] or ""] for card, found in row["largest_batch"].items()],
            )
        elif "error" in row:
            lines.append(f"`{row['row']}`: {row['error'][:300]}")
    return "\n".join(lines) + "\n"


def with_speeds(rows: list[dict]) -> list[dict]:
    """Those of the one table: of several processes one for `step` and one for `loop`."""
    listed = []
    for row in rows:
        if row["row"].startswith("gpus:"):
            for kind in ("step", "loop"):
                own = {
                    name.removeprefix(f"{kind}_"): value for name, value in row.items() if name.startswith(f"{kind}_")
                }
                listed.append(own | {"row": f"{row['row']} {kind}"})
        else:
            listed.append(row)
    return [row for row in listed if "pictures_per_second" in row]


def cells(row: dict, rows: list[dict], peak: dict | None) -> list[str]:
    """Under `COLUMNS`."""
    rate = row["pictures_per_second"]
    return [
        f"`{row['row']}`",
        f"{rate:,.1f}" if rate >= 10 else f"{rate:.3g}",
        number(row.get("spread"), ".1%"),
        number(row.get("ms_per_step"), ".1f"),
        number(row.get("model_ms_per_step"), ".1f"),
        number(row.get("first_seconds"), ".1f"),
        ratio(rate, baseline_of(rows, row)),
        number(row.get("times_one"), ".2f"),
        number(row.get("tflop_per_picture"), ".2f"),
        f"{row['tflops'] / peak['tflops']:.1%}" if peak and "tflops" in row else "",
        number(row.get("allocated_gib", row.get("device_memory_gib")), ".1f"),
    ]


def baseline_of(rows: list[dict], row: dict) -> float | None:
    """Pictures per second of diffusers' example with the same sizes and batch."""
    _, *words = row["row"].split(":")
    baseline = found(rows, ":".join(("diffusers", *words[:2])))
    return baseline["pictures_per_second"] if baseline else None


def table(head: str, rows: list[list]) -> list[str]:
    names = head.split(" | ")
    return ["", *(f"| {' | '.join(map(str, row))} |" for row in (names, ["---"] * len(names), *rows)), ""]


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def ratio(value: float, base: float | None) -> str:
    return f"{value / base:.2f}" if base else ""

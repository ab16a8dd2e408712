"""How much of the machine's own limit a training step reaches: its operations over the rate of a large matrix product.

    python -m benchmarks.machine_share [--methods finetune,gta,copy,distill] [--sizes 112,224] [--threads 1]

Operations are those of matrix products, convolutions and attention, forward and backward, as PyTorch counts them. Steps
and products of matrices take turns in one process, and processor time is taken, so that other work on the machine
disturbs both alike; with more threads it is wall time. Prints a Markdown table, and the operators that took the time
where a share is under 60 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from attention_transfer.experiments.steps import Bench, TimedStep, step_of, teacher_of

SIDE = 2048  # of the matrices, whose product is what the machine can do
LOW = 0.6  # shares below it are explained


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_small_patch16_224")
    parser.add_argument("--methods", default="finetune,gta,copy,distill")
    parser.add_argument("--sizes", default="112,224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    print("| pixels | method | operations, GFLOP | step, s | step, GFLOP/s | matrices, GFLOP/s | share |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    slow: dict[str, TimedStep] = {}
    for size in map(int, args.sizes.split(",")):
        bench = Bench(args.model, size, args.batch_size, "cpu", "float32", compiled=False)
        for method in args.methods.split(","):
            step = step_of(method, teacher_of(bench), bench)
            work = operations(step)
            seconds, rate = paired(step, clock, args.repeats)
            share = work / seconds / rate
            figures = f"{work / 1e9:.0f} | {seconds:.2f} | {work / seconds / 1e9:.0f} | {rate / 1e9:.0f} | {share:.0%}"
            print(f"| {size} | {method} | {figures} |", flush=True)
            if share < LOW:
                slow[f"{method} at {size} pixels"] = step
    for name, step in slow.items():
        print(f"\n{name}, share of the processor's time:", *operators(step), sep="\n")


def operations(step: TimedStep) -> float:
    """Additions and multiplications of one step, each counted."""
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def paired(step: TimedStep, clock: Callable[[], float], repeats: int) -> tuple[float, float]:
    """Median seconds of a step, and median operations a second of a product of matrices, taken in turns."""
    a, b = torch.randn(2, SIDE, SIDE)
    seconds: list[float] = []
    rates: list[float] = []
    for _ in range(repeats):
        start = clock()
        a @ b
        middle = clock()
        step()
        seconds.append(clock() - middle)
        rates.append(2 * SIDE**3 / (middle - start))
    return median(seconds), median(rates)


def operators(step: TimedStep, most: int = 8) -> Iterator[str]:
    """The operators that take the most time by themselves."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    found = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in found)
    yield from (f"{event.self_cpu_time_total / total:6.1%}  {event.key}" for event in found[:most])


if __name__ == "__main__":
    main()

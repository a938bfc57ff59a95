# An all-reduce of ranks on one card, the residual's sum and RMSNorm as PyTorch does them one after the other: what a fused kernel is compared with.
# With DEVICE cuda a line of JSON for each line "ranks rows n" of its input: microseconds of one chain, given to the device each time and from a
# CUDA graph. With nccl the sum is NCCL's, of as many ranks as there are cards, each a process of its own, and `ranks` of a line must be that many.
# python3 fused_norm.py DEVICE [TIMES]; needs torch.
import json
import os
import statistics
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

ROUNDS = 7
EPS = 1e-6


def chain(parts, reduce, residual, weight):
    total = reduce(parts)
    residual.add_(total)
    return F.rms_norm(residual, weight.shape, weight, EPS)


def of_one_card(parts):
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def microseconds(run, times, wait):
    found = []
    for _ in range(ROUNDS + 1):
        wait()
        start = time.perf_counter()
        for _ in range(times):
            run()
        wait()
        found.append((time.perf_counter() - start) * 1e6 / times)
    return statistics.median(found[1:])


def measure(device, ranks, rows, n, reduce, times):
    make = lambda *shape: torch.randn(*shape, device=device).to(torch.bfloat16)
    parts = [make(rows, n) / 1024 for _ in range(ranks)]
    residual, weight = make(rows, n), make(n)
    run = lambda: chain(parts, reduce, residual, weight)
    cuda = device != "cpu"
    wait = torch.cuda.synchronize if cuda else lambda: None
    found = {"ranks": ranks, "rows": rows, "n": n, "microseconds": microseconds(run, times, wait), "graphMicroseconds": None}
    if cuda:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(times):
                run()
        found["graphMicroseconds"] = microseconds(graph.replay, 4, wait) / times
    return found


def by_nccl(rank, store, size, lines, times):
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=rank, world_size=size)

    def reduce(parts):
        dist.all_reduce(parts[0])
        return parts[0]

    for ranks, rows, n in lines:
        assert ranks == size
        found = measure(f"cuda:{rank}", 1, rows, n, reduce, times)
        if rank == 0:
            print(json.dumps({**found, "ranks": size}), flush=True)
    dist.destroy_process_group()


def main():
    device, times = sys.argv[1], int((sys.argv[2:] or [50])[0])
    about = {"torch": torch.__version__, "cuda": torch.version.cuda, "devices": torch.cuda.device_count()}
    print(json.dumps(about), flush=True)
    lines = [tuple(map(int, line.split())) for line in sys.stdin if line.strip()]
    if device == "nccl":
        size = torch.cuda.device_count()
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(by_nccl, (os.path.join(folder, "store"), size, lines, times), nprocs=size)
        return
    with torch.inference_mode():
        for ranks, rows, n in lines:
            print(json.dumps(measure(device, ranks, rows, n, of_one_card, times)), flush=True)


if __name__ == "__main__":
    main()

# The matrix products of a prompt in a Llama model, in bfloat16 by oneDNN with weights that are packed beforehand, as vLLM's CPU backend has
# them: what it can reach at most, since attention, norms and all else are left out. For each line "prefill N" of its input: tokens a second.
# python3 products.py THREADS HIDDEN MLP LAYERS HEADS KV_HEADS; needs torch.
import json
import sys
import time

import torch

threads, hidden, mlp, layers, heads, kv_heads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
kv = hidden // heads * kv_heads
SHAPES = [(hidden + 2 * kv, hidden), (hidden, hidden), (2 * mlp, hidden), (hidden, mlp)]
TOKENS = 128


def packed(outs, k):
    weight = torch.randn(outs, k).to(torch.bfloat16)
    return torch.ops.mkldnn._reorder_linear_weight(weight, TOKENS)


weights = [[packed(*shape) for shape in SHAPES] for _ in range(layers)]
inputs = [torch.randn(TOKENS, k).to(torch.bfloat16) for _, k in SHAPES]


def run(tokens):
    for layer in weights:
        for x, weight in zip(inputs, layer):
            torch.ops.mkldnn._linear_pointwise(x[:tokens], weight, None, "none", [], "")


with torch.inference_mode():
    run(TOKENS)
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        _, count = line.split()
        run(int(count))
        start = time.perf_counter()
        run(int(count))
        print(json.dumps({"rate": int(count) / (time.perf_counter() - start)}), flush=True)

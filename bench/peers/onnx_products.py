# Writes the matrix products of one token of a Llama model as an ONNX file of 4-bit weights (MatMulNBits, blocks of 32), a chain for onnxruntime:
# what it can reach at most, since attention, norms and all else are left out. python3 onnx_products.py OUT HIDDEN MLP LAYERS HEADS KV_HEADS VOCAB
# [ACCURACY]; needs onnx and numpy.
import sys

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

out = sys.argv[1]
hidden, mlp, layers, heads, kv_heads, vocab = map(int, sys.argv[2:8])
accuracy = int(sys.argv[8]) if len(sys.argv) > 8 else 4
kv = hidden // heads * kv_heads
nodes, weights = [], []


def product(x, k, n):
    name = f"p{len(nodes)}"
    blocks = np.random.randint(0, 256, (n, k // 32, 16), dtype=np.uint8)
    scales = np.full(n * (k // 32), 0.2 / k**0.5, dtype=np.float32)
    weights.extend([numpy_helper.from_array(blocks, f"{name}.w"), numpy_helper.from_array(scales, f"{name}.s")])
    inputs = [x, f"{name}.w", f"{name}.s"]
    nodes.append(helper.make_node("MatMulNBits", inputs, [name], domain="com.microsoft", K=k, N=n, bits=4, block_size=32, accuracy_level=accuracy))
    return name


def columns(x, count):
    name = f"c{len(nodes)}"
    weights.append(numpy_helper.from_array(np.array([0], np.int64), f"{name}.from"))
    weights.append(numpy_helper.from_array(np.array([count], np.int64), f"{name}.to"))
    weights.append(numpy_helper.from_array(np.array([1], np.int64), f"{name}.axis"))
    nodes.append(helper.make_node("Slice", [x, f"{name}.from", f"{name}.to", f"{name}.axis"], [name]))
    return name


x = "x"
for _ in range(layers):
    qkv = product(x, hidden, hidden + 2 * kv)
    attended = product(columns(qkv, hidden), hidden, hidden)
    gate_up = product(attended, hidden, 2 * mlp)
    x = product(columns(gate_up, mlp), mlp, hidden)
logits = product(x, hidden, vocab)
graph = helper.make_graph(
    nodes,
    "products",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, hidden])],
    [helper.make_tensor_value_info(logits, TensorProto.FLOAT, [1, vocab])],
    weights,
)
opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
save(model, out, save_as_external_data=True, all_tensors_to_one_file=True, location=out.split("/")[-1] + ".data")

#!/usr/bin/env python3
"""Train the small byte-level Llama model that lies beside this file.

What it is for: Rankmesh's examples and tests need a real language model with
the Hugging Face `LlamaForCausalLM` layout that is small enough to be kept with
the source (about 5 MB in bf16), has grouped-query attention and a tied output
layer, and divides evenly over 2 or 4 ranks. This script makes every file of
that folder except README.md:

    config.json  generation_config.json  tokenizer.json  tokenizer_config.json
    model.safetensors  evaluation.json  golden.json  train.log

Needs Python 3.9+ and PyTorch; runs on two CPU cores in under an hour:

    python3 train.py tinyshakespeare.txt --out .

The corpus is the 1,115,394-character "tiny Shakespeare" text (public domain).
The first 90 % of its characters are trained on, the last 10 % are held out.
A token is a byte, and the text is ASCII, so a token is a character.

Held-out loss, exactly: cut the held-out text into consecutive windows of 256
tokens from its start without overlap and drop the tail. Feed each window to
the model by itself, positions 0..255; in each, token i+1 is predicted from
tokens 0..i, which gives 255 predictions. The loss is the mean of -ln p over
all predictions of all windows (nats per character), in float32, with the
weights that model.safetensors holds (rounded to bf16, then widened).
"""

import argparse
import hashlib
import json
import math
import os
import struct
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0",
    "use_cache": True,
    "vocab_size": 256,
}

WINDOW = 256  # tokens in a training block and in a held-out window

# golden.json holds the first two of these whose greedy continuation is never
# a near tie, so that another runtime's rounding cannot change a token.
GOLDEN_PROMPTS = [
    "ROMEO:\nWhat light",
    "First Citizen:\n",
    "JULIET:\nO Romeo",
    "KING RICHARD III:\n",
    "To be, or not",
]
GOLDEN_TOKENS = 200
GOLDEN_MARGIN = 1e-3  # smallest top-1/top-2 logit difference that is accepted


# --------------------------------------------------------------------- model


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight, in float32 or wider."""

    def __init__(self, size, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        if x.dtype != torch.float64:
            x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rope_tables(length, dim, theta):
    """cos and sin of position * theta^(-2i/dim), float64, [length, dim/2]."""
    freq = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * freq[None, :]
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Rotate the pairs (i, i + dim/2) of each head; x is [..., length, dim]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.q_proj = nn.Linear(c["hidden_size"], self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, c["hidden_size"], bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        group = self.heads // self.kv_heads  # query head h reads key/value head h // group
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.dropout = dropout

    def forward(self, x, cos, sin):
        y = self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + F.dropout(y, self.dropout, self.training)
        y = self.mlp(self.post_attention_layernorm(x))
        return x + F.dropout(y, self.dropout, self.training)


class Llama(nn.Module):
    """Parameter names equal the Hugging Face names without the "model." prefix."""

    def __init__(self, c, dropout=0.0):
        super().__init__()
        self.config, self.dropout = c, dropout
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c, dropout) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        cos, sin = rope_tables(c["max_position_embeddings"], c["head_dim"], c["rope_theta"])
        self.tables = {torch.float64: (cos, sin), torch.float32: (cos.float(), sin.float())}
        std = c["initializer_range"]
        for name, p in self.named_parameters():
            if p.dim() == 2:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=std / math.sqrt(2 * c["num_hidden_layers"]) if out else std)

    def forward(self, tokens):
        x = F.dropout(self.embed_tokens(tokens), self.dropout, self.training)
        cos, sin = (t[: tokens.shape[1]] for t in self.tables[x.dtype])
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(self.norm(x), self.embed_tokens.weight)  # tied output layer


# ------------------------------------------------------------------ evaluation


@torch.no_grad()
def held_out_loss(model, tokens, limit=None, batch=15):
    """(windows, mean nats) by the definition at the top of this file."""
    model.eval()
    count = len(tokens) // WINDOW
    if limit is not None:
        count = min(count, limit)
    windows = tokens[: count * WINDOW].view(count, WINDOW)
    total = 0.0
    for chunk in windows.split(batch):
        logits = model(chunk)[:, :-1]
        nll = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), chunk[:, 1:].reshape(-1), reduction="none")
        total += nll.double().sum().item()
    return count, total / (count * (WINDOW - 1))


def as_float32(row):
    """The float32 values of a row of logits, with the digits float32 needs."""
    return [float("%.9g" % v) for v in row.float().tolist()]


@torch.no_grad()
def golden_entry(model, prompt):
    """Logits and greedy continuation of a prompt; model must be float64."""
    ids = list(prompt.encode("utf-8"))
    logits = model(torch.tensor([ids]))[0]
    entry = {
        "prompt": prompt,
        "ids": ids,
        "firstPositionLogits": as_float32(logits[0]),
        "lastPositionLogits": as_float32(logits[-1]),
    }
    sequence, margin, where = list(ids), math.inf, 0
    for step in range(GOLDEN_TOKENS):
        top = model(torch.tensor([sequence]))[0, -1].topk(2)
        gap = (top.values[0] - top.values[1]).item()
        if gap < margin:
            margin, where = gap, step
        sequence.append(top.indices[0].item())
    entry["greedy"] = sequence[len(ids):]
    entry["greedyText"] = bytes(entry["greedy"]).decode("utf-8", "replace")
    entry["smallestMargin"] = margin
    entry["smallestMarginStep"] = where
    return entry


# ---------------------------------------------------------------------- files


def write_json(path, value, indent=2):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=indent, ensure_ascii=False)
        f.write("\n")


def byte_symbols():
    """GPT-2's printable stand-in character for each of the 256 byte values."""
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols, extra = {}, 0
    for byte in range(256):
        if byte in keep:
            symbols[byte] = chr(byte)
        else:
            symbols[byte] = chr(256 + extra)
            extra += 1
    return symbols


def write_config_and_tokenizer(out):
    write_json(os.path.join(out, "config.json"), CONFIG)
    write_json(os.path.join(out, "generation_config.json"), {
        "_from_model_config": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "transformers_version": CONFIG["transformers_version"],
    })
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    })
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(os.path.join(out, "tokenizer.json"), {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {symbol: byte for byte, symbol in byte_symbols().items()},
            "merges": [],
        },
    })


def write_safetensors(path, tensors):
    """u64 little-endian header length, JSON header padded to 8 bytes, data."""
    header, data, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        assert t.dtype == torch.bfloat16
        raw = t.view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
        data.append(raw)
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)))
        f.write(text)
        for raw in data:
            f.write(raw)


# ----------------------------------------------------------------------- main


def main():
    parser = argparse.ArgumentParser(description="Train the tiny Shakespeare Llama model on a CPU.")
    parser.add_argument("data", help="the tiny Shakespeare text file")
    parser.add_argument("--out", default=".", help="folder for the files (default: here)")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16, help="blocks of 256 tokens in a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--min-lr", type=float, default=5e-5, help="learning rate at the last step")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    parser.add_argument("--eval-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--float32", action="store_true", help="train in float32, not bf16 autocast")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    os.makedirs(args.out, exist_ok=True)
    log_file = open(os.path.join(args.out, "train.log"), "w", encoding="utf-8")

    def log(line):
        print(line, flush=True)
        log_file.write(line + "\n")
        log_file.flush()

    with open(args.data, "rb") as f:
        text = f.read()
    assert text.isascii(), "a token is meant to be a character"
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    split = len(tokens) * 9 // 10
    train, held = tokens[:split], tokens[split:]

    settings = {k: v for k, v in vars(args).items() if k not in ("data", "out")}
    log(f"torch {torch.__version__}")
    log(f"settings {json.dumps(settings)}")
    log(f"corpus {len(text)} characters, sha256 {hashlib.sha256(text).hexdigest()}")
    log(f"train {len(train)} characters, held out {len(held)} characters")

    model = Llama(CONFIG, args.dropout)
    log(f"parameters {sum(p.numel() for p in model.parameters())}")
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr, betas=(0.9, 0.99), fused=True)

    def learning_rate(step):
        if step < args.warmup:
            return args.lr * (step + 1) / args.warmup
        done = (step - args.warmup) / max(1, args.steps - args.warmup)
        return args.min_lr + (args.lr - args.min_lr) * 0.5 * (1 + math.cos(math.pi * done))

    start, best, best_step, best_weights, recent = time.time(), math.inf, 0, None, []
    block = torch.arange(WINDOW + 1)
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        at = torch.randint(len(train) - WINDOW, (args.batch, 1))
        chunk = train[at + block]
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.float32):
            logits = model(chunk[:, :-1])
        loss = F.cross_entropy(logits.float().view(-1, logits.shape[-1]), chunk[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        recent.append(loss.item())
        done = step + 1
        if done % 50 == 0 or done == args.steps:
            log(f"step {done:5d}  train {sum(recent) / len(recent):.4f}  "
                f"lr {learning_rate(step):.2e}  {time.time() - start:6.0f} s")
            recent = []
        if done % args.eval_every == 0 or done == args.steps:
            _, nats = held_out_loss(model, held)
            mark = ""
            if nats < best:
                best, best_step, mark = nats, done, "  best"
                best_weights = {n: p.detach().clone() for n, p in model.named_parameters()}
            log(f"step {done:5d}  held out {nats:.4f}{mark}  {time.time() - start:6.0f} s")
    seconds = time.time() - start
    log(f"trained {args.steps} steps in {seconds:.0f} s; keeping step {best_step}")

    # Tensor.to(bfloat16) rounds to nearest, ties to even.
    rounded = {name: w.to(torch.bfloat16) for name, w in best_weights.items()}
    write_config_and_tokenizer(args.out)
    write_safetensors(os.path.join(args.out, "model.safetensors"), {"model." + n: w for n, w in rounded.items()})

    model = Llama(CONFIG)
    model.load_state_dict({n: w.float() for n, w in rounded.items()})
    count, nats = held_out_loss(model, held)
    first, first_nats = held_out_loss(model, held, limit=40)
    log(f"bf16-rounded weights: held out {nats:.6f} nats over {count} windows, {first_nats:.6f} over the first {first}")
    write_json(os.path.join(args.out, "evaluation.json"), {
        "heldOut": {"windows": count, "window": WINDOW, "nats": round(nats, 6)},
        "heldOutFirst40": {"windows": first, "window": WINDOW, "nats": round(first_nats, 6)},
        "heldOutStart": split,
        "heldOutCharacters": len(held),
        "predictionsPerWindow": WINDOW - 1,
        "dtypeOfWeights": "bf16 upcast to float32",
        "dtypeOfArithmetic": "float32",
        "torch": torch.__version__,
        "seed": args.seed,
        "steps": args.steps,
        "keptStep": best_step,
        "trainingSeconds": round(seconds),
        "corpusSha256": hashlib.sha256(text).hexdigest(),
    })

    model = model.double().eval()
    entries, skipped = [], []
    for prompt in GOLDEN_PROMPTS:
        entry = golden_entry(model, prompt)
        ok = entry["smallestMargin"] >= GOLDEN_MARGIN
        log(f"golden {json.dumps(prompt)}: smallest margin {entry['smallestMargin']:.6f} "
            f"at step {entry['smallestMarginStep']}{'' if ok else ', a near tie: not used'}")
        if ok:
            entries.append(entry)
        else:
            skipped.append({"prompt": prompt, "smallestMargin": entry["smallestMargin"]})
        if len(entries) == 2:
            break
    golden = {
        "about": "float64 arithmetic and RoPE tables, bf16 weights widened; logits rounded to float32; "
                 "smallestMargin is the least top-1 minus top-2 logit over the greedy steps",
        "torch": torch.__version__,
        "greedyTokens": GOLDEN_TOKENS,
        "prompts": entries,
        "skippedNearTies": skipped,
    }
    # A line for each prompt: indenting would give every number a line.
    text = json.dumps(golden, ensure_ascii=False)
    with open(os.path.join(args.out, "golden.json"), "w", encoding="utf-8") as f:
        f.write(text.replace('"prompts": [', '"prompts": [\n').replace('}, {"prompt"', '},\n{"prompt"') + "\n")
    for entry in entries:
        log("sample:\n" + entry["prompt"] + entry["greedyText"])
    log_file.close()


if __name__ == "__main__":
    main()

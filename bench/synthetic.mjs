// Llama models of random weights as GGUF files, for timing alone: node bench/synthetic.mjs FOLDER [1.1b|135m|57m|15m] [f32,f16,bf16,q8_0,q4_0]
import { randomFillSync } from 'node:crypto'
import { closeSync, mkdirSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

const SHAPES = {
  '1.1b': { hidden: 2048, mlp: 5632, layers: 22, heads: 32, kvHeads: 4, vocab: 32000, context: 2048 },
  '135m': { hidden: 576, mlp: 1536, layers: 30, heads: 9, kvHeads: 3, vocab: 49152, context: 2048, tied: true },
  '57m': { hidden: 512, mlp: 1536, layers: 12, heads: 8, kvHeads: 8, vocab: 16000, context: 512 },
  '15m': { hidden: 288, mlp: 768, layers: 6, heads: 6, kvHeads: 6, vocab: 32000, context: 512 },
}
/** GGUF's numbers for types, and elements and bytes of a block. */
const TYPES = { f32: [0, 1, 4], f16: [1, 1, 2], bf16: [30, 1, 2], q8_0: [8, 32, 34], q4_0: [2, 32, 18] }
const FILE_TYPES = { f32: 0, f16: 1, bf16: 32, q8_0: 7, q4_0: 2 }
const CHUNK = 16 * 2 ** 20

export function tensorsOf({ hidden, mlp, layers, heads, kvHeads, vocab, tied = false }) {
  const kv = (hidden / heads) * kvHeads
  const layer = (i) => [
    [`blk.${i}.attn_norm.weight`, [hidden]],
    [`blk.${i}.attn_q.weight`, [hidden, hidden]],
    [`blk.${i}.attn_k.weight`, [kv, hidden]],
    [`blk.${i}.attn_v.weight`, [kv, hidden]],
    [`blk.${i}.attn_output.weight`, [hidden, hidden]],
    [`blk.${i}.ffn_norm.weight`, [hidden]],
    [`blk.${i}.ffn_gate.weight`, [mlp, hidden]],
    [`blk.${i}.ffn_down.weight`, [hidden, mlp]],
    [`blk.${i}.ffn_up.weight`, [mlp, hidden]],
  ]
  const table = [vocab, hidden]
  return [
    ['token_embd.weight', table],
    ...Array.from({ length: layers }, (_, i) => layer(i)).flat(),
    ['output_norm.weight', [hidden]],
    ...(tied ? [] : [['output.weight', table]]),
  ]
}

/** Writes one file and gives its path. Weights are of the size that keeps activations near 1. */
export function writeModel(folder, name, type) {
  const shape = SHAPES[name]
  const tensors = tensorsOf(shape)
  mkdirSync(folder, { recursive: true })
  const path = join(folder, `${name}-${type}.gguf`)
  const file = openSync(path, 'w')
  const head = header(shape, tensors, type)
  writeSync(file, head.bytes)
  const chunks = { ones: ones(), [type]: blocks(type, shape.hidden) }
  for (const [, dims] of tensors) {
    const { bytes } = sizeOf(dims, type)
    const chunk = chunks[dims.length === 1 ? 'ones' : type]
    for (let left = bytes; left > 0; left -= chunk.length) writeSync(file, chunk, 0, Math.min(left, chunk.length))
    writeSync(file, Buffer.alloc(-bytes & 31))
  }
  closeSync(file)
  return path
}

function sizeOf(dims, type) {
  const kind = dims.length === 1 ? 'f32' : type
  const [, values, bytes] = TYPES[kind]
  return { kind, bytes: (dims.reduce((a, b) => a * b, 1) / values) * bytes }
}

/** Norm weights. */
function ones() {
  return Buffer.from(new Float32Array(CHUNK / 4).fill(1).buffer)
}

/** Random weights, uniform with a deviation of 1 / sqrt(inputs), as bytes of whole blocks. */
function blocks(type, inputs) {
  const [, , size] = TYPES[type]
  const count = Math.floor(CHUNK / size)
  const out = Buffer.allocUnsafe(count * size)
  randomFillSync(out)
  const widest = Math.sqrt(3 / inputs)
  if (type === 'f32') for (let i = 0; i < count; i++) out.writeFloatLE(widest * (Math.random() * 2 - 1), i * 4)
  else if (type === 'bf16') for (let i = 0; i < count; i++) out.writeUInt16LE(brain(widest * (Math.random() * 2 - 1)), i * 2)
  else if (type === 'f16') for (let i = 0; i < count; i++) out.writeUInt16LE(half(widest * (Math.random() * 2 - 1)), i * 2)
  else for (let i = 0; i < count; i++) out.writeUInt16LE(half(widest / (type === 'q8_0' ? 127 : 8)), i * size)
  return out
}

/** The bits of bfloat16, cut off. */
function brain(value) {
  return new Uint32Array(Float32Array.of(value).buffer)[0] >>> 16
}

/** A number of (2^-24, 1) as the bits of float16, cut off. */
function half(value) {
  const [float] = new Uint32Array(Float32Array.of(Math.abs(value)).buffer)
  const exponent = (float >>> 23) - 112
  const mantissa = (float >>> 13) & 0x3ff
  const bits = exponent > 0 ? (exponent << 10) | mantissa : (mantissa | 0x400) >>> Math.min(11, 1 - exponent)
  return (value < 0 ? 0x8000 : 0) | bits
}

function header(shape, tensors, type) {
  const tokens = ['<unk>', '<s>', '</s>', ...Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`)]
  while (tokens.length < shape.vocab) tokens.push(`\u2581t${tokens.length}`)
  const meta = [
    ['general.architecture', string('llama')],
    ['general.name', string('synthetic')],
    ['general.file_type', u32(FILE_TYPES[type])],
    ['llama.context_length', u32(shape.context)],
    ['llama.embedding_length', u32(shape.hidden)],
    ['llama.block_count', u32(shape.layers)],
    ['llama.feed_forward_length', u32(shape.mlp)],
    ['llama.attention.head_count', u32(shape.heads)],
    ['llama.attention.head_count_kv', u32(shape.kvHeads)],
    ['llama.attention.layer_norm_rms_epsilon', f32(1e-5)],
    ['llama.rope.dimension_count', u32(shape.hidden / shape.heads)],
    ['llama.rope.freq_base', f32(10000)],
    ['llama.vocab_size', u32(shape.vocab)],
    ['tokenizer.ggml.model', string('llama')],
    ['tokenizer.ggml.tokens', list(8, tokens.map(text))],
    [
      'tokenizer.ggml.scores',
      list(
        6,
        tokens.map((_, i) => f32(-i).subarray(4)),
      ),
    ],
    [
      'tokenizer.ggml.token_type',
      list(
        5,
        tokens.map((_, i) => u32(i < 1 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1).subarray(4)),
      ),
    ],
    ['tokenizer.ggml.bos_token_id', u32(1)],
    ['tokenizer.ggml.eos_token_id', u32(2)],
    ['tokenizer.ggml.unknown_token_id', u32(0)],
  ]
  let offset = 0
  const infos = tensors.map(([name, dims]) => {
    const { kind, bytes } = sizeOf(dims, type)
    const info = Buffer.concat([text(name), word(dims.length), ...dims.toReversed().map(long), word(TYPES[kind][0]), long(offset)])
    offset += Math.ceil(bytes / 32) * 32
    return info
  })
  const start = Buffer.concat([Buffer.from('GGUF'), word(3), long(tensors.length), long(meta.length)])
  const parts = Buffer.concat([start, ...meta.flatMap(([key, value]) => [text(key), value]), ...infos])
  return { bytes: Buffer.concat([parts, Buffer.alloc(-parts.length & 31)]) }
}

const word = (value) => Buffer.from(Uint32Array.of(value).buffer)
const long = (value) => Buffer.from(BigUint64Array.of(BigInt(value)).buffer)
const text = (value) => Buffer.concat([long(Buffer.byteLength(value)), Buffer.from(value)])
const u32 = (value) => Buffer.concat([word(4), word(value)])
const f32 = (value) => Buffer.concat([word(6), Buffer.from(Float32Array.of(value).buffer)])
const string = (value) => Buffer.concat([word(8), text(value)])
const list = (kind, items) => Buffer.concat([word(9), word(kind), long(items.length), ...items])

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [folder, name = '1.1b', types = 'f16,q8_0,q4_0'] = process.argv.slice(2)
  for (const type of types.split(',')) console.log(writeModel(folder, name, type))
}

// The CPU engine where the addon is not built: the same commands, run by plain loops when they are handed over.
import type { Engine, EngineQueue } from '../../core/addon.ts'
import { BLOCK_FORMATS, type BlockType, decodeBlocks } from '../../core/blocks.ts'
import { decodeBfloat16, decodeFloat16, encodeBfloat16, encodeFloat16 } from '../../core/codecs.ts'
import { BLOCK_DTYPES, type BlockDType } from '../../core/dtype.ts'
import { OP, TYPE } from '../engine/commands.ts'
import { runCollective } from './loop-collectives.ts'
import * as kernels from './loop-kernels.ts'

/** What multiplies: the loops, or a library in their place. */
export interface Products {
  /** What runs the commands, as people read it. */
  readonly kernels: string
  /** A product in float32; a row's bits do not depend on what else is multiplied. */
  matmul: typeof kernels.matmul
  close?(): void
}

export class LoopEngine implements Engine {
  readonly kernels: string
  readonly #products: Products
  readonly #blocks = new Map<number, ArrayBuffer>()
  #nextBlock = 1
  #queues = 0

  constructor(products: Products = { kernels: 'TypeScript loops', matmul: kernels.matmul }) {
    this.#products = products
    this.kernels = products.kernels
  }

  allocate(byteLength: number): { id: number; buffer: ArrayBuffer } {
    const buffer = new ArrayBuffer(byteLength)
    const id = this.#nextBlock++
    this.#blocks.set(id, buffer)
    return { id, buffer }
  }

  free(id: number): void {
    this.#blocks.delete(id)
  }

  createQueue(): EngineQueue {
    return new LoopQueue(this.#queues++, this.#blocks, this.#products)
  }

  close(): void {
    this.#products.close?.()
  }
}

class LoopQueue implements EngineQueue {
  readonly id: number
  readonly #blocks: ReadonlyMap<number, ArrayBuffer>
  readonly #products: Products
  #times: Map<string, ReturnType<EngineQueue['measured']>[number]> | null = null

  constructor(id: number, blocks: ReadonlyMap<number, ArrayBuffer>, products: Products) {
    this.id = id
    this.#blocks = blocks
    this.#products = products
  }

  submit(words: Float64Array, count: number): void {
    const reader = new Reader(words, this.#blocks)
    while (reader.at < count) {
      const start = performance.now()
      const [op, types] = run(reader, this.#products)
      if (this.#times && op !== OP.wait) this.#note(op, types, (performance.now() - start) * 1e6)
    }
  }

  async finish(): Promise<boolean> {
    return true
  }

  measure(): void {
    this.#times = new Map()
  }

  measured(): ReturnType<EngineQueue['measured']> {
    const times = [...(this.#times?.values() ?? [])]
    this.#times = null
    return times
  }

  close(): void {}

  #note(op: number, types: readonly number[], nanoseconds: number): void {
    const key = [op, ...types].join()
    const known = this.#times?.get(key) ?? { op, types, runs: 0, nanoseconds: 0 }
    known.runs++
    known.nanoseconds += nanoseconds
    this.#times?.set(key, known)
  }
}

/** Bytes of an operand. */
interface Place {
  buffer: ArrayBuffer
  offset: number
}

class Reader {
  readonly #words: Float64Array
  readonly #blocks: ReadonlyMap<number, ArrayBuffer>
  at = 0

  constructor(words: Float64Array, blocks: ReadonlyMap<number, ArrayBuffer>) {
    this.#words = words
    this.#blocks = blocks
  }

  /** Integers as such, not as floats that happen to be whole: loops that count by them take half the time. */
  word(): number {
    const word = this.#words[this.at++] as number
    const integer = word | 0
    return integer === word ? integer : word
  }

  /** `count` words, as numbers with names. */
  words<Name extends string>(...names: readonly Name[]): Record<Name, number> {
    return Object.fromEntries(names.map((name) => [name, this.word()])) as Record<Name, number>
  }

  place(): Place {
    const buffer = this.#blocks.get(this.word()) as ArrayBuffer
    return { buffer, offset: this.word() }
  }
}

/** Where the first token is, once the command runs. */
function startOf(
  { tokens, start, limit, positioned }: { tokens: number; start: number; limit: number; positioned: number },
  { buffer, offset }: Place,
): number {
  return positioned ? Math.min(start + (new Uint32Array(buffer, offset, 1)[0] as number), limit - tokens) : start
}

/** The elements as float32: the memory itself, or a decoded copy. */
function load(type: number, { buffer, offset }: Place, count: number): Float32Array<ArrayBuffer> {
  const block = BLOCKS[type]
  if (block) {
    const { values, bytes } = BLOCK_FORMATS[block]
    return decodeBlocks(block, new Uint8Array(buffer, offset, (count / values) * bytes))
  }
  if (type === TYPE.f32) return new Float32Array(buffer, offset, count)
  const halves = new Uint16Array(buffer, offset, count)
  return type === TYPE.bf16 ? decodeBfloat16(halves) : decodeFloat16(halves)
}

/** What commands call blocks, by number. */
const BLOCKS: Readonly<Record<number, BlockType>> = Object.fromEntries(
  (Object.keys(BLOCK_DTYPES) as BlockDType[]).map((dtype) => [TYPE[dtype], BLOCK_DTYPES[dtype]]),
)

/** Rows of `outs` values each, into columns of rows that may be wider. */
function storeRows(
  { buffer, offset }: Place,
  values: Float32Array,
  { outs, width, column }: Record<'outs' | 'width' | 'column', number>,
): void {
  const to = new Float32Array(buffer, offset)
  for (let row = 0; row * outs < values.length; row++) to.set(values.subarray(row * outs, (row + 1) * outs), row * width + column)
}

function store(type: number, { buffer, offset }: Place, values: Float32Array): void {
  if (type === TYPE.f32) new Float32Array(buffer, offset, values.length).set(values)
  else new Uint16Array(buffer, offset, values.length).set(type === TYPE.bf16 ? encodeBfloat16(values) : encodeFloat16(values))
}

/** Runs one command: its op and the types of its operands. */
function run(reader: Reader, products: Products): [op: number, types: readonly number[]] {
  const op = reader.word()
  switch (op) {
    case OP.wait:
      // Whatever is waited for was handed over, and so has run.
      reader.words('queue', 'epoch')
      return [op, []]
    case OP.meet:
      // The one that leads comes last, and its work next.
      reader.words('id', 'queues', 'leads')
      return [OP.wait, []]
    case OP.reduce:
    case OP.reduceNorm:
    case OP.gather:
      return [op, runCollective(op, reader)]
    case OP.embedding: {
      const { tokens, n, rows, first, from, to } = reader.words('tokens', 'n', 'rows', 'first', 'from', 'to')
      const [ids, table, y] = [reader.place(), reader.place(), reader.place()]
      store(to, y, kernels.embedding(new Uint32Array(ids.buffer, ids.offset, tokens), load(from, table, rows * n), n, first))
      return [op, [from, to]]
    }
    case OP.matmul: {
      const given = reader.words('tokens', 'k', 'outs', 'width', 'column', 'rounding', 'a', 'b', 'biased')
      const { tokens, k, outs, a, b } = given
      const [x, w, bias, y] = [reader.place(), reader.place(), reader.place(), reader.place()]
      const added = given.biased ? load(TYPE.f32, bias, outs) : null
      storeRows(y, products.matmul(load(a, x, tokens * k), load(b, w, outs * k), { tokens, k, outs }, added), given)
      return [op, [a, b]]
    }
    case OP.matmulTree: {
      const given = reader.words('tokens', 'k', 'outs', 'block', 'first', 'width', 'column', 'a', 'b', 'biased', 'whole')
      const { tokens, k, outs, a, b } = given
      const [x, w, bias, y] = [reader.place(), reader.place(), reader.place(), reader.place()]
      const added = given.biased ? load(TYPE.f32, bias, outs) : null
      storeRows(y, kernels.matmulTree(load(a, x, tokens * k), load(b, w, outs * k), given, added), given)
      return [op, [a, b]]
    }
    case OP.rope: {
      const given = reader.words('tokens', 'heads', 'kvHeads', 'dim', 'start', 'limit', 'positioned')
      const { tokens, heads, kvHeads, dim } = given
      const [x, table, q, keys, values] = [reader.place(), reader.place(), reader.place(), reader.place(), reader.place()]
      const shape = { ...given, start: startOf(given, reader.place()) }
      const { start } = shape
      const cache = (place: Place): Float32Array => load(TYPE.f32, place, (start + tokens) * kvHeads * dim).subarray(start * kvHeads * dim)
      kernels.rope(load(TYPE.f32, x, tokens * (heads + 2 * kvHeads) * dim), load(TYPE.f32, table, (start + tokens) * dim), shape, {
        q: load(TYPE.f32, q, tokens * heads * dim),
        keys: cache(keys),
        values: cache(values),
      })
      return [op, []]
    }
    case OP.attention: {
      const given = reader.words('tokens', 'heads', 'kvHeads', 'dim', 'start', 'window', 'limit', 'scale', 'positioned', 'portable')
      const { tokens, heads, kvHeads, dim } = given
      const [q, keys, values, y] = [reader.place(), reader.place(), reader.place(), reader.place()]
      const shape = { ...given, start: startOf(given, reader.place()) }
      const { start } = shape
      const cache = (place: Place): Float32Array => load(TYPE.f32, place, (start + tokens) * kvHeads * dim)
      store(TYPE.f32, y, kernels.attention(load(TYPE.f32, q, tokens * heads * dim), cache(keys), cache(values), shape))
      return [op, []]
    }
    case OP.siluMul: {
      const { rows, n, type } = reader.words('rows', 'n', 'type', 'portable')
      const [x, y] = [reader.place(), reader.place()]
      store(type, y, kernels.siluMul(load(type, x, rows * 2 * n), rows, n))
      return [op, [type]]
    }
    case OP.rmsNorm: {
      const { rows, n, type, eps, centered } = reader.words('rows', 'n', 'type', 'eps', 'centered', 'portable')
      const [x, weight, y] = [reader.place(), reader.place(), reader.place()]
      store(type, y, kernels.rmsNorm(load(type, x, rows * n), load(type, weight, n), n, eps, centered))
      return [op, [type]]
    }
    case OP.add: {
      const { n, type } = reader.words('n', 'type')
      const [a, b, y] = [reader.place(), reader.place(), reader.place()]
      if (type === TYPE.u32) {
        const [p, q, out] = [a, b, y].map(({ buffer, offset }) => new Uint32Array(buffer, offset, n)) as [
          Uint32Array,
          Uint32Array,
          Uint32Array,
        ]
        for (let i = 0; i < n; i++) out[i] = (p[i] as number) + (q[i] as number)
      } else {
        const other = load(type, b, n)
        store(
          type,
          y,
          load(type, a, n).map((value, i) => value + (other[i] as number)),
        )
      }
      return [op, [type]]
    }
    case OP.softmax: {
      const { rows, n } = reader.words('rows', 'n')
      const [x, y] = [reader.place(), reader.place()]
      store(TYPE.f32, y, kernels.softmax(load(TYPE.f32, x, rows * n), n))
      return [op, []]
    }
    case OP.topK: {
      const { rows, n, k } = reader.words('rows', 'n', 'k')
      const [x, values, indices] = [reader.place(), reader.place(), reader.place()]
      const at = new Uint32Array(indices.buffer, indices.offset, rows * k)
      kernels.topK(load(TYPE.f32, x, rows * n), n, k, load(TYPE.f32, values, rows * k), at)
      return [op, []]
    }
    case OP.cast: {
      const { n, from, to } = reader.words('n', 'from', 'to')
      const [x, y] = [reader.place(), reader.place()]
      store(to, y, load(from, x, n))
      return [op, [from, to]]
    }
    default: {
      const bytes = reader.word()
      const [from, to] = [reader.place(), reader.place()]
      new Uint8Array(to.buffer, to.offset, bytes).set(new Uint8Array(from.buffer, from.offset, bytes))
      return [OP.copy, []]
    }
  }
}

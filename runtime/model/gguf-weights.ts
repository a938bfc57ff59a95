// The weights of a GGUF file under the names and in the layout that Hugging Face gives them; blocks stay blocks, or are decoded as they are read.
import { BLOCK_FORMATS, type BlockType, decodeBlocks } from '../core/blocks.ts'
import { encodeBfloat16 } from '../core/codecs.ts'
import { BLOCK_DTYPES, type BlockDType, type DType, dtypeSize, isBlockDType } from '../core/dtype.ts'
import { checkInteger, invalidArgument } from '../core/errors.ts'
import { type GgufModel, readGguf } from './gguf.ts'
import type { GgufTensor } from './gguf-file.ts'
import { checkExpected, type Expected, noTensor, sliceOf, type TensorBytes, type Weights } from './named-tensors.ts'
import { readRuns } from './runs.ts'
import type { TensorInfo } from './safetensors.ts'
import { allocate, type ByteSource, type ModelFolder } from './source.ts'

export interface GgufWeightsOptions {
  /** Gaps of at most this many bytes are read rather than skipped; the source's own value unless given. 0 reads nothing in vain. */
  mergeGap?: number
  /**
   * What the quantized matrices of a GGUF file are read as: `blocks` (the default), as they are; `float32`, the same values in 4 to 7 times the
   * memory; `bfloat16`, values rounded, in half of that. Vectors are float32 unless this is bfloat16.
   */
  quantizedAs?: QuantizedAs | undefined
}

export type QuantizedAs = 'blocks' | 'float32' | 'bfloat16'

interface Entry {
  tensor: GgufTensor
  info: TensorInfo
  /** Rows of a head, where the file has them in pairs that turn together (i, i + 1) rather than in halves (i, i + n / 2); else 1. */
  pairedRows: number
}

class GgufWeights implements Weights {
  readonly #source: ByteSource
  readonly #entries: ReadonlyMap<string, Entry>
  readonly #mergeGap: number
  #bytesRead = 0

  constructor(source: ByteSource, entries: ReadonlyMap<string, Entry>, mergeGap: number) {
    this.#source = source
    this.#entries = entries
    this.#mergeGap = mergeGap
  }

  get bytesRead(): number {
    return this.#bytesRead
  }

  names(): string[] {
    return [...this.#entries.keys()]
  }

  has(name: string): boolean {
    return this.#entries.has(name)
  }

  async info(name: string, expected: Expected = {}): Promise<TensorInfo> {
    return this.#find(name, expected).info
  }

  async read(name: string, expected: Expected = {}): Promise<TensorBytes> {
    return this.readSlice(name, 0, 0, this.#find(name, expected).info.shape[0] as number)
  }

  /**
   * Reads whole blocks and, where rows change places, whole heads; what they hold beyond the slice is cut off. Blocks that are cut inside become
   * float32.
   */
  async readSlice(name: string, dim: number, start: number, length: number, expected: Expected = {}): Promise<TensorBytes> {
    const { info, tensor, pairedRows } = this.#find(name, expected)
    const { dim: at, outer, whole, inner } = sliceOf(info, dim, start, length)
    const { values, bytes: blockBytes } = BLOCK_FORMATS[tensor.type]
    const unit = lcm(at === info.shape.length - 1 ? values : 1, at === 0 ? pairedRows : 1)
    const first = Math.floor(start / unit) * unit
    const end = Math.ceil((start + length) / unit) * unit
    const stored = (items: number): number => ((items * inner) / values) * blockBytes
    const runs = { begin: tensor.begin + stored(first), count: outer, length: stored(end - first), stride: stored(whole) }
    const { bytes: raw, bytesRead } = await readRuns(this.#source, runs, this.#mergeGap)
    this.#bytesRead += bytesRead
    const inside = at === info.shape.length - 1 && (start % values !== 0 || length % values !== 0)
    const dtype = isBlockDType(info.dtype) && inside ? 'float32' : info.dtype
    const elements = this.#as(dtype, tensor.type, raw)
    const rows = at === 0 ? end - first : (info.shape[0] as number)
    const turned = pairedRows === 1 ? elements : halvesOf(elements, rows, pairedRows)
    const item = inner * dtypeSize(dtype)
    const bytes = cut(turned, outer, (end - first) * item, (start - first) * item, length * item)
    return { dtype, shape: info.shape.with(at, length), bytes }
  }

  async close(): Promise<void> {
    await this.#source.close()
  }

  #find(name: string, expected: Expected): Entry {
    const entry = this.#entries.get(name)
    if (!entry) throw noTensor(this.#source.name, name, this.#entries.keys())
    checkExpected(entry.info, expected)
    return entry
  }

  /** What is stored as `type`, as `dtype`. */
  #as(dtype: DType, type: BlockType, raw: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    if (isBlockDType(dtype) || type in STORED) return raw
    const { values, bytes } = BLOCK_FORMATS[type]
    const out = new Float32Array(allocate(this.#source.name, 4 * values * (raw.length / bytes)).buffer)
    decodeBlocks(type, raw, out)
    return new Uint8Array(dtype === 'bfloat16' ? encodeBfloat16(out).buffer : out.buffer)
  }
}

/** Opens the weights of a folder's GGUF file. Throws ERR_MODEL_FORMAT on a file that is damaged or of a kind that is not read. */
export async function openGgufWeights(folder: ModelFolder, options: GgufWeightsOptions = {}): Promise<Weights> {
  const { mergeGap, quantizedAs = 'blocks' } = options
  if (mergeGap !== undefined) checkInteger('mergeGap', mergeGap, 0)
  if (!['blocks', 'float32', 'bfloat16'].includes(quantizedAs))
    throw invalidArgument('quantizedAs', '"blocks", "float32" or "bfloat16"', quantizedAs)
  const model = await readGguf(folder)
  const source = await folder.open(folder.gguf as string)
  return new GgufWeights(source, entriesOf(model, quantizedAs), mergeGap ?? source.mergeGap ?? 4096)
}

const STORED: Readonly<Partial<Record<BlockType, DType>>> = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' }
const BLOCKS: ReadonlyMap<BlockType, BlockDType> = new Map(Object.entries(BLOCK_DTYPES).map(([dtype, type]) => [type, dtype as BlockDType]))

function entriesOf({ header, config, tensors, paired }: GgufModel, quantizedAs: QuantizedAs): Map<string, Entry> {
  const dtypeOf = (type: BlockType, dimensions: number): DType => {
    if (quantizedAs !== 'blocks') return quantizedAs
    return dimensions === 1 ? 'float32' : (BLOCKS.get(type) as BlockDType)
  }
  return new Map(
    [...tensors].map(([name, tensor]): [string, Entry] => {
      const { type, shape, begin, end } = tensor
      const stored = STORED[type]
      const place = { name, shape, begin, end, file: header.file }
      const info: TensorInfo = stored ? { ...place, dtype: stored } : { ...place, dtype: dtypeOf(type, shape.length), blocks: type }
      return [name, { tensor, info, pairedRows: paired && /\.[qk]_proj\./.test(name) ? config.headDim : 1 }]
    }),
  )
}

/** Rows of heads of `head` rows each, from pairs that turn together, (0, 1), (2, 3), ..., to halves, (0, head / 2), (1, head / 2 + 1), ... */
function halvesOf(bytes: Uint8Array<ArrayBuffer>, rows: number, head: number): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(bytes.length)
  const row = bytes.length / rows
  for (let to = 0; to < rows; to++) {
    const i = to % head
    const from = to - i + (i < head / 2 ? 2 * i : 2 * i - head + 1)
    out.set(bytes.subarray(from * row, (from + 1) * row), to * row)
  }
  return out
}

/** Bytes [offset, offset + length) of each of `count` runs of `stride` bytes. */
function cut(bytes: Uint8Array<ArrayBuffer>, count: number, stride: number, offset: number, length: number): Uint8Array<ArrayBuffer> {
  if (length === stride) return bytes
  const out = new Uint8Array(count * length)
  for (let i = 0; i < count; i++) out.set(bytes.subarray(i * stride + offset, i * stride + offset + length), i * length)
  return out
}

function lcm(a: number, b: number): number {
  let [divisor, rest] = [a, b]
  while (rest > 0) [divisor, rest] = [rest, divisor % rest]
  return (a / divisor) * b
}

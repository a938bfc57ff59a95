// One GGUF file: its header read and checked against the size of the file, so that every tensor lies where it says.
import { BLOCK_FORMATS, type BlockType } from '../core/blocks.ts'
import { describe, ModelFormatError } from '../core/errors.ts'
import { formatShape, type Shape } from '../core/shape.ts'
import { type GgufValue, HeaderReader, MoreNeeded } from './gguf-reader.ts'
import { show } from './json.ts'
import type { ByteSource } from './source.ts'

export type { GgufValue }

export interface GgufTensor {
  readonly name: string
  readonly type: BlockType
  /** Slowest dimension first; the last one is a whole number of blocks. */
  readonly shape: Shape
  /** First byte of the tensor, counted from the start of the file. */
  readonly begin: number
  /** One past its last byte. */
  readonly end: number
}

export interface GgufHeader {
  /** What errors call the file. */
  readonly file: string
  readonly metadata: ReadonlyMap<string, GgufValue>
  readonly tensors: ReadonlyMap<string, GgufTensor>
}

/** The longest header that is read; that of a vocabulary of 262,144 tokens has about 15 MB. */
const MAX_HEADER_BYTES = 100_000_000
/** What is read at first; more where the header is longer. */
const FIRST_BYTES = 1 << 20
const MAX_DIMENSIONS = 4
/** A tensor's entry is at least the length of its name, the number of dimensions, a type and an offset; a key's is at least a length and a type. */
const MIN_TENSOR_BYTES = 24
const MIN_KEY_BYTES = 13

/** Numbers of the tensor types that are read, and the names of those that are not. */
const TYPES: ReadonlyMap<number, BlockType> = new Map<number, BlockType>([
  [0, 'F32'],
  [1, 'F16'],
  [2, 'Q4_0'],
  [3, 'Q4_1'],
  [8, 'Q8_0'],
  [12, 'Q4_K'],
  [13, 'Q5_K'],
  [14, 'Q6_K'],
  [30, 'BF16'],
])
const NOT_READ: Readonly<Record<number, string>> = {
  6: 'Q5_0',
  7: 'Q5_1',
  9: 'Q8_1',
  10: 'Q2_K',
  11: 'Q3_K',
  15: 'Q8_K',
  16: 'IQ2_XXS',
  17: 'IQ2_XS',
  18: 'IQ3_XXS',
  19: 'IQ1_S',
  20: 'IQ4_NL',
  21: 'IQ3_S',
  22: 'IQ2_S',
  23: 'IQ4_XS',
  24: 'I8',
  25: 'I16',
  26: 'I32',
  27: 'I64',
  28: 'F64',
  29: 'IQ1_M',
  34: 'TQ1_0',
  35: 'TQ2_0',
  39: 'MXFP4',
  40: 'NVFP4',
}

/** Reads the header, and nothing of the tensors. Throws ERR_MODEL_FORMAT on a file that contradicts itself; `source` stays open. */
export async function readGgufHeader(source: ByteSource): Promise<GgufHeader> {
  const file = source.name
  const size = await source.size()
  for (let length = FIRST_BYTES; ; length *= 4) {
    const bytes = await source.read(0, Math.min(length, size, MAX_HEADER_BYTES))
    try {
      return parseHeader(new HeaderReader(file, bytes, size))
    } catch (error) {
      if (!(error instanceof MoreNeeded)) throw error
      if (bytes.length === MAX_HEADER_BYTES) throw new ModelFormatError(`The header of ${file} is longer than ${MAX_HEADER_BYTES} bytes`)
    }
  }
}

function parseHeader(reader: HeaderReader): GgufHeader {
  const { file, size } = reader
  checkVersion(reader)
  const tensorCount = reader.count('the number of tensors', MIN_TENSOR_BYTES)
  const keyCount = reader.count('the number of metadata keys', MIN_KEY_BYTES)
  const metadata = new Map<string, GgufValue>()
  for (let i = 0; i < keyCount; i++) {
    const key = reader.string(`metadata key ${i}`)
    if (metadata.has(key)) throw new ModelFormatError(`${file} gives the metadata key ${show(key)} twice`)
    metadata.set(key, reader.value(`metadata ${show(key)}`))
  }
  const entries = Array.from({ length: tensorCount }, (_, i) => readTensor(reader, i))
  const alignment = alignmentOf(file, metadata)
  const dataBegin = Math.ceil(reader.at / alignment) * alignment
  const tensors = new Map<string, GgufTensor>()
  for (const { name, type, shape, offset } of entries) {
    if (tensors.has(name)) throw new ModelFormatError(`${file} holds two tensors of the name ${show(name)}`)
    const begin = dataBegin + offset
    const { values, bytes } = BLOCK_FORMATS[type]
    const length = (shape.reduce((n, m) => n * m, 1) / values) * bytes
    if (offset % alignment !== 0) {
      throw new ModelFormatError(`Tensor ${show(name)} of ${file} begins at ${offset}, not at a multiple of the alignment ${alignment}`)
    }
    if (!(begin + length <= size)) {
      throw new ModelFormatError(
        `Tensor ${show(name)} of ${file} takes ${length} bytes from byte ${begin}, but the file has ${size}; it was cut short`,
      )
    }
    tensors.set(name, { name, type, shape, begin, end: begin + length })
  }
  checkOverlap(file, tensors)
  return { file, metadata, tensors }
}

function checkVersion(reader: HeaderReader): void {
  const { file } = reader
  if (reader.size < 8 || reader.u32('the magic number') !== 0x46554747) {
    throw new ModelFormatError(`Expected ${file} to start with "GGUF"; it is not a GGUF file`)
  }
  const version = reader.u32('the version')
  if (version === 2 || version === 3) return
  const why = version !== 0 && version % 65536 === 0 ? 'it is big-endian' : `it says ${version}`
  throw new ModelFormatError(`Expected GGUF version 2 or 3 in ${file} but ${why}; convert the model again`)
}

interface TensorEntry {
  name: string
  type: BlockType
  shape: number[]
  offset: number
}

function readTensor(reader: HeaderReader, index: number): TensorEntry {
  const { file } = reader
  const name = reader.string(`the name of tensor ${index}`)
  const label = `tensor ${show(name)}`
  const dimensions = reader.u32(`the number of dimensions of ${label}`)
  if (dimensions < 1 || dimensions > MAX_DIMENSIONS) {
    throw new ModelFormatError(`Expected 1 to ${MAX_DIMENSIONS} dimensions for ${label} of ${file} but it says ${dimensions}`)
  }
  const shape = Array.from({ length: dimensions }, () => reader.u64(`a dimension of ${label}`)).reverse()
  const number = reader.u32(`the type of ${label}`)
  const offset = reader.u64(`the offset of ${label}`)
  const type = TYPES.get(number)
  if (!type) {
    const given = NOT_READ[number] === undefined ? `unknown type ${number}` : `type ${NOT_READ[number]}, which is not read`
    throw new ModelFormatError(`In ${file}, ${label} is of ${given}; quantize the model to one of ${[...TYPES.values()].join(', ')}`)
  }
  const elements = shape.reduce((n, m) => n * m, 1)
  if (elements === 0 || !Number.isSafeInteger(elements * 4)) {
    throw new ModelFormatError(
      `Expected dimensions of at least 1 that can be counted for ${label} of ${file} but it says ${formatShape(shape)}`,
    )
  }
  const { values } = BLOCK_FORMATS[type]
  if ((shape.at(-1) as number) % values !== 0) {
    throw new ModelFormatError(
      `Expected rows of whole ${type} blocks of ${values} for ${label} of ${file} but it says ${formatShape(shape)}`,
    )
  }
  return { name, type, shape, offset }
}

function alignmentOf(file: string, metadata: ReadonlyMap<string, GgufValue>): number {
  const given = metadata.get('general.alignment') ?? 32
  if (typeof given !== 'number' || !Number.isInteger(given) || given < 1 || given > 1 << 20) {
    throw new ModelFormatError(`Expected an integer in [1, ${1 << 20}] for general.alignment of ${file} but received ${describe(given)}`)
  }
  return given
}

function checkOverlap(file: string, tensors: ReadonlyMap<string, GgufTensor>): void {
  let previous: GgufTensor | undefined
  for (const tensor of [...tensors.values()].sort((a, b) => a.begin - b.begin)) {
    if (previous && tensor.begin < previous.end) {
      throw new ModelFormatError(
        `In ${file}, tensor ${show(tensor.name)} overlaps tensor ${show(previous.name)} by ${previous.end - tensor.begin} bytes`,
      )
    }
    previous = tensor
  }
}

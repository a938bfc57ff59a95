// One safetensors file: its header read and checked against the size of the file, so that every tensor lies where it says.
import type { BlockType } from '../core/blocks.ts'
import { type DType, dtypeSize } from '../core/dtype.ts'
import { ModelFormatError } from '../core/errors.ts'
import { formatShape, type Shape } from '../core/shape.ts'
import { asObject, isObject, type JsonObject, own, parseJson, show } from './json.ts'
import { type ByteSource, decodeUtf8 } from './source.ts'

export interface TensorInfo {
  readonly name: string
  /** What its elements are read as. */
  readonly dtype: DType
  /** The blocks that the file holds them in; absent: as `dtype` itself. */
  readonly blocks?: BlockType
  readonly shape: Shape
  /** First byte of the tensor, counted from the start of the file. */
  readonly begin: number
  /** One past its last byte. */
  readonly end: number
  /** The file that holds it, as errors call it. */
  readonly file: string
}

/** The longest header that is read; writers of the format keep the same bound. */
const MAX_HEADER_BYTES = 100_000_000
const LENGTH_BYTES = 8

const DTYPE_OF: ReadonlyMap<unknown, DType> = new Map<unknown, DType>([
  ['F32', 'float32'],
  ['F16', 'float16'],
  ['BF16', 'bfloat16'],
  ['F8_E4M3', 'float8_e4m3fn'],
  ['F8_E5M2', 'float8_e5m2'],
  ['I8', 'int8'],
  ['U8', 'uint8'],
  ['I32', 'int32'],
  ['U32', 'uint32'],
  ['I64', 'int64'],
  ['U64', 'uint64'],
])

/** Types that the format has and Rankmesh has no use for. */
const NOT_READ: ReadonlySet<unknown> = new Set(['F64', 'BOOL', 'I16', 'U16', 'C64', 'F8_E8M0', 'F4', 'F6_E2M3', 'F6_E3M2'])

export class SafetensorsFile {
  readonly name: string
  readonly tensors: ReadonlyMap<string, TensorInfo>
  readonly metadata: ReadonlyMap<string, string>
  /** Ranged reads of the file; `TensorInfo.begin` and `end` are its offsets. */
  readonly source: ByteSource

  private constructor(source: ByteSource, tensors: Map<string, TensorInfo>, metadata: Map<string, string>) {
    this.name = source.name
    this.source = source
    this.tensors = tensors
    this.metadata = metadata
  }

  /** Reads the header, and nothing of the tensors. Throws ERR_MODEL_FORMAT on a file that contradicts itself; `source` stays open. */
  static async open(source: ByteSource): Promise<SafetensorsFile> {
    const file = source.name
    const size = await source.size()
    const headerSize = await readHeaderSize(source, size)
    const header = await source.read(LENGTH_BYTES, headerSize)
    if (header[0] !== 0x7b) throw new ModelFormatError(`Expected the header of ${file} to start with '{'; it is not a safetensors file`)
    const label = `the header of ${file}`
    const json = asObject(label, parseJson(label, decodeUtf8(label, header)))
    const dataBegin = LENGTH_BYTES + headerSize
    const tensors = new Map<string, TensorInfo>()
    for (const [name, entry] of Object.entries(json)) {
      if (name !== '__metadata__') tensors.set(name, parseTensor(file, name, entry, dataBegin, size))
    }
    checkCover(file, tensors, dataBegin, size)
    return new SafetensorsFile(source, tensors, parseMetadata(file, own(json, '__metadata__')))
  }

  close(): Promise<void> {
    return this.source.close()
  }
}

async function readHeaderSize(source: ByteSource, size: number): Promise<number> {
  if (size < LENGTH_BYTES) throw new ModelFormatError(`${source.name} has ${size} bytes; a safetensors file has at least ${LENGTH_BYTES}`)
  const prefix = await source.read(0, LENGTH_BYTES)
  const length = new DataView(prefix.buffer).getBigUint64(0, true)
  if (length === 0n || length > BigInt(MAX_HEADER_BYTES)) {
    throw new ModelFormatError(
      `Expected a header of 1 to ${MAX_HEADER_BYTES} bytes in ${source.name} but it says ${length}; it is not a safetensors file`,
    )
  }
  if (length > BigInt(size - LENGTH_BYTES)) {
    throw new ModelFormatError(
      `The header of ${source.name} says ${length} bytes but the file ends after ${size - LENGTH_BYTES}; it was cut short`,
    )
  }
  return Number(length)
}

function parseTensor(file: string, name: string, entry: unknown, dataBegin: number, size: number): TensorInfo {
  const fail = (message: string): never => {
    throw new ModelFormatError(`Tensor ${show(name)} of ${file}: ${message}`)
  }
  if (!isObject(entry)) return fail(`expected an object but received ${show(entry)}`)
  const dtype = parseDType(entry, fail)
  const shape = parseShape(entry, fail)
  const offsets = own(entry, 'data_offsets')
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    return fail(`expected data_offsets [begin, end] of non-negative integers but received ${show(offsets)}`)
  }
  const [begin, end] = offsets as [number, number]
  if (begin > end) return fail(`data_offsets ${show(offsets)} end before they begin`)
  if (end > size - dataBegin) return fail(`data_offsets ${show(offsets)} lie outside the ${size - dataBegin} bytes of data`)
  let bytes = dtypeSize(dtype)
  for (const n of shape) {
    bytes *= n
    if (!Number.isSafeInteger(bytes)) return fail(`shape ${formatShape(shape)} holds more bytes than can be counted exactly`)
  }
  if (end - begin !== bytes) {
    return fail(`${formatShape(shape)} of ${dtype} takes ${bytes} bytes but data_offsets ${show(offsets)} give ${end - begin}`)
  }
  return { name, dtype, shape, begin: dataBegin + begin, end: dataBegin + end, file }
}

function parseDType(entry: JsonObject, fail: (message: string) => never): DType {
  const given = own(entry, 'dtype')
  const dtype = DTYPE_OF.get(given)
  if (dtype) return dtype
  const known = `convert the tensor to one of ${[...DTYPE_OF.keys()].join(', ')}`
  return fail(NOT_READ.has(given) ? `dtype ${given} is not read; ${known}` : `unknown dtype ${show(given)}; ${known}`)
}

function parseShape(entry: JsonObject, fail: (message: string) => never): Shape {
  const shape = own(entry, 'shape')
  if (!Array.isArray(shape) || !shape.every(isCount)) {
    return fail(`expected a list of non-negative integers for shape but received ${show(shape)}`)
  }
  return shape
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}

/** The tensors must fill the data without overlap and without a hole. */
function checkCover(file: string, tensors: ReadonlyMap<string, TensorInfo>, dataBegin: number, size: number): void {
  let covered = dataBegin
  let previous = 'the header'
  for (const tensor of [...tensors.values()].sort((a, b) => a.begin - b.begin || a.end - b.end)) {
    const label = `tensor ${show(tensor.name)}`
    if (tensor.begin < covered) throw new ModelFormatError(`In ${file}, ${label} overlaps ${previous} by ${covered - tensor.begin} bytes`)
    if (tensor.begin > covered) {
      throw new ModelFormatError(`In ${file}, ${tensor.begin - covered} bytes between ${previous} and ${label} belong to no tensor`)
    }
    covered = tensor.end
    previous = label
  }
  if (covered !== size) throw new ModelFormatError(`In ${file}, ${size - covered} bytes after ${previous} belong to no tensor`)
}

function parseMetadata(file: string, metadata: unknown): Map<string, string> {
  if (metadata === undefined) return new Map()
  if (!isObject(metadata)) throw new ModelFormatError(`Expected an object for __metadata__ of ${file} but received ${show(metadata)}`)
  const out = new Map<string, string>()
  for (const [key, value] of Object.entries(metadata)) {
    if (typeof value !== 'string') {
      throw new ModelFormatError(`Expected a string for ${show(key)} in __metadata__ of ${file} but received ${show(value)}`)
    }
    out.set(key, value)
  }
  return out
}

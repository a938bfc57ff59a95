// The weights of a model folder, one file or many shards: tensors by name, whole or in slices, so that a rank reads only its part.
import { type DType, dtypeSize } from '../core/dtype.ts'
import { ArgumentError, checkInteger, ModelFormatError } from '../core/errors.ts'
import { formatShape, resolveDim, type Shape, sameShape, splitAt } from '../core/shape.ts'
import { asObject, isObject, own, parseJson, show } from './json.ts'
import { readRuns } from './runs.ts'
import { SafetensorsFile, type TensorInfo } from './safetensors.ts'
import { checkFileName, type ModelFolder } from './source.ts'

/** Raw little-endian elements, row-major, in memory of their own. */
export interface TensorBytes {
  readonly dtype: DType
  readonly shape: Shape
  readonly bytes: Uint8Array<ArrayBuffer>
}

/** What a caller needs a tensor to be; anything else throws ERR_MODEL_FORMAT. */
export interface Expected {
  dtype?: DType | readonly DType[]
  shape?: Shape
}

export interface WeightsOptions {
  /** Gaps of at most this many bytes are read rather than skipped; the source's own value unless given. 0 reads nothing in vain. */
  mergeGap?: number
}

const SINGLE = 'model.safetensors'
const INDEX = 'model.safetensors.index.json'

export class Weights {
  readonly #folder: ModelFolder
  /** Tensor name to the file that holds it. */
  readonly #fileOf: ReadonlyMap<string, string>
  readonly #opened: Map<string, Promise<SafetensorsFile>> = new Map()
  readonly #mergeGap: number | undefined
  #bytesRead = 0

  /** For `openWeights`. `opened` holds files that are open already, by name. */
  constructor(
    folder: ModelFolder,
    fileOf: ReadonlyMap<string, string>,
    options: WeightsOptions,
    opened: Iterable<[string, SafetensorsFile]>,
  ) {
    if (options.mergeGap !== undefined) checkInteger('mergeGap', options.mergeGap, 0)
    this.#folder = folder
    this.#fileOf = fileOf
    this.#mergeGap = options.mergeGap
    for (const [name, open] of opened) this.#opened.set(name, Promise.resolve(open))
  }

  /** Bytes of tensors read so far; headers are not counted. */
  get bytesRead(): number {
    return this.#bytesRead
  }

  names(): string[] {
    return [...this.#fileOf.keys()]
  }

  has(name: string): boolean {
    return this.#fileOf.has(name)
  }

  /** Type, shape and place of a tensor; opens its file if need be. */
  async info(name: string, expected: Expected = {}): Promise<TensorInfo> {
    const info = (await this.#open(this.#shardOf(name))).tensors.get(name) as TensorInfo
    checkExpected(info, expected)
    return info
  }

  /** A whole tensor. */
  async read(name: string, expected: Expected = {}): Promise<TensorBytes> {
    const info = await this.info(name, expected)
    return { dtype: info.dtype, shape: info.shape, bytes: await this.#read(info, 1, info.end - info.begin, 0, info.end - info.begin) }
  }

  /**
   * Elements [start, start + length) along `dim`, read by ranges: of dimension 0 one range, of a later one a range per row, joined where
   * they lie close. `expected` describes the whole tensor. Throws ERR_ARGUMENT or ERR_SHAPE on a slice outside of it.
   */
  async readSlice(name: string, dim: number, start: number, length: number, expected: Expected = {}): Promise<TensorBytes> {
    const info = await this.info(name, expected)
    const at = resolveDim(dim, info.shape.length)
    const { outer, length: whole, inner } = splitAt(info.shape, at)
    checkInteger('start', start, 0)
    checkInteger('length', length, 0)
    if (start + length > whole) {
      throw new ArgumentError(
        `Expected a slice inside dimension ${at} of ${show(name)} ${formatShape(info.shape)} but received ${start} to ${start + length}`,
      )
    }
    const element = inner * dtypeSize(info.dtype)
    const bytes = await this.#read(info, outer, length * element, start * element, whole * element)
    return { dtype: info.dtype, shape: info.shape.with(at, length), bytes }
  }

  /** Closes the files that were opened. */
  async close(): Promise<void> {
    const files = await Promise.allSettled(this.#opened.values())
    this.#opened.clear()
    for (const file of files) if (file.status === 'fulfilled') await file.value.close()
  }

  /** `count` runs of `length` bytes of a tensor, the first at `offset` inside it. */
  async #read(info: TensorInfo, count: number, length: number, offset: number, stride: number): Promise<Uint8Array<ArrayBuffer>> {
    const { source } = await this.#open(this.#shardOf(info.name))
    const runs = { begin: info.begin + offset, count, length, stride }
    const { bytes, bytesRead } = await readRuns(source, runs, this.#mergeGap ?? source.mergeGap ?? 4096)
    this.#bytesRead += bytesRead
    return bytes
  }

  #shardOf(name: string): string {
    const file = this.#fileOf.get(name)
    if (file !== undefined) return file
    const near = nearNames(name, this.#fileOf.keys()).map(show).join(', ')
    throw new ModelFormatError(`${this.#folder.name} holds no tensor ${show(name)}; the nearest names are: ${near || 'none'}`)
  }

  #open(file: string): Promise<SafetensorsFile> {
    let opened = this.#opened.get(file)
    if (!opened) {
      opened = this.#openShard(file)
      this.#opened.set(file, opened)
      opened.catch(() => this.#opened.delete(file))
    }
    return opened
  }

  async #openShard(file: string): Promise<SafetensorsFile> {
    const shard = await openFile(this.#folder, file)
    for (const [name, holder] of this.#fileOf) {
      if (holder === file && !shard.tensors.has(name)) {
        await shard.close()
        throw new ModelFormatError(`The index of ${this.#folder.name} places tensor ${show(name)} in ${file}, which does not hold it`)
      }
    }
    return shard
  }
}

/**
 * Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names; shards are opened when a tensor of theirs is first
 * asked for. Throws ERR_MODEL_FORMAT where neither is there, or where the index names a file that is absent or outside the folder.
 */
export async function openWeights(folder: ModelFolder, options: WeightsOptions = {}): Promise<Weights> {
  if (await folder.exists(SINGLE)) {
    const file = await openFile(folder, SINGLE)
    const fileOf = new Map([...file.tensors.keys()].map((name) => [name, SINGLE]))
    return new Weights(folder, fileOf, options, [[SINGLE, file]])
  }
  if (!(await folder.exists(INDEX))) {
    throw new ModelFormatError(`${folder.name} holds neither ${SINGLE} nor ${INDEX}; weights in other formats are not read`)
  }
  return new Weights(folder, await readIndex(folder), options, [])
}

async function openFile(folder: ModelFolder, file: string): Promise<SafetensorsFile> {
  const source = await folder.open(file)
  try {
    return await SafetensorsFile.open(source)
  } catch (error) {
    await source.close()
    throw error
  }
}

async function readIndex(folder: ModelFolder): Promise<Map<string, string>> {
  const file = `${folder.name}/${INDEX}`
  const map = own(asObject(file, parseJson(file, await folder.text(INDEX))), 'weight_map')
  if (!isObject(map)) throw new ModelFormatError(`Expected an object for weight_map of ${file} but received ${show(map)}`)
  const fileOf = new Map<string, string>()
  for (const [name, shard] of Object.entries(map)) {
    if (typeof shard !== 'string') {
      throw new ModelFormatError(`Expected a file name for ${show(name)} in ${file} but received ${show(shard)}`)
    }
    fileOf.set(name, shard)
  }
  for (const shard of new Set(fileOf.values())) {
    checkFileName(folder.name, shard)
    if (!(await folder.exists(shard)))
      throw new ModelFormatError(`${file} names the shard ${show(shard)}, which ${folder.name} does not hold`)
  }
  return fileOf
}

function checkExpected(info: TensorInfo, expected: Expected): void {
  const dtypes = expected.dtype === undefined ? undefined : [expected.dtype].flat()
  if (dtypes && !dtypes.includes(info.dtype)) {
    throw new ModelFormatError(`Expected dtype ${dtypes.join(' or ')} for tensor ${show(info.name)} but ${info.file} holds ${info.dtype}`)
  }
  if (expected.shape && !sameShape(expected.shape, info.shape)) {
    throw new ModelFormatError(
      `Expected shape ${formatShape(expected.shape)} for tensor ${show(info.name)} but ${info.file} holds ${formatShape(info.shape)}`,
    )
  }
}

/** Up to three of `names` that share the most with `name` at its two ends. */
function nearNames(name: string, names: Iterable<string>): string[] {
  const common = (a: string, b: string, at: (s: string, i: number) => string | undefined) => {
    let n = 0
    while (n < Math.min(a.length, b.length) && at(a, n) === at(b, n)) n++
    return n
  }
  const score = (other: string) => common(name, other, (s, i) => s[i]) + common(name, other, (s, i) => s[s.length - 1 - i])
  return [...names]
    .map((other) => ({ other, score: score(other) }))
    .sort((a, b) => b.score - a.score)
    .slice(0, 3)
    .map(({ other }) => other)
}

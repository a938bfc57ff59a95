// The weights of a model folder, one file or many shards: tensors by name, whole or in slices, so that a rank reads only its part.
import { dtypeSize } from '../core/dtype.ts'
import { checkInteger, ModelFormatError } from '../core/errors.ts'
import { type GgufWeightsOptions, openGgufWeights } from './gguf-weights.ts'
import { asObject, isObject, own, parseJson, show } from './json.ts'
import { checkExpected, type Expected, noTensor, sliceOf, type TensorBytes, type Weights } from './named-tensors.ts'
import { readRuns } from './runs.ts'
import { SafetensorsFile, type TensorInfo } from './safetensors.ts'
import { checkFileName, type ModelFolder } from './source.ts'

export type { Expected, TensorBytes, Weights }

export type WeightsOptions = GgufWeightsOptions

const SINGLE = 'model.safetensors'
const INDEX = 'model.safetensors.index.json'

class SafetensorsWeights implements Weights {
  readonly #folder: ModelFolder
  /** Tensor name to the file that holds it. */
  readonly #fileOf: ReadonlyMap<string, string>
  readonly #opened: Map<string, Promise<SafetensorsFile>> = new Map()
  readonly #mergeGap: number | undefined
  #bytesRead = 0

  /** `opened` holds files that are open already, by name. */
  constructor(
    folder: ModelFolder,
    fileOf: ReadonlyMap<string, string>,
    { mergeGap }: WeightsOptions,
    opened: Iterable<[string, SafetensorsFile]>,
  ) {
    if (mergeGap !== undefined) checkInteger('mergeGap', mergeGap, 0)
    this.#folder = folder
    this.#fileOf = fileOf
    this.#mergeGap = mergeGap
    for (const [name, open] of opened) this.#opened.set(name, Promise.resolve(open))
  }

  get bytesRead(): number {
    return this.#bytesRead
  }

  names(): string[] {
    return [...this.#fileOf.keys()]
  }

  has(name: string): boolean {
    return this.#fileOf.has(name)
  }

  async info(name: string, expected: Expected = {}): Promise<TensorInfo> {
    const info = (await this.#open(this.#shardOf(name))).tensors.get(name) as TensorInfo
    checkExpected(info, expected)
    return info
  }

  async read(name: string, expected: Expected = {}): Promise<TensorBytes> {
    const info = await this.info(name, expected)
    return { dtype: info.dtype, shape: info.shape, bytes: await this.#read(info, 1, info.end - info.begin, 0, info.end - info.begin) }
  }

  async readSlice(name: string, dim: number, start: number, length: number, expected: Expected = {}): Promise<TensorBytes> {
    const info = await this.info(name, expected)
    const { dim: at, outer, whole, inner } = sliceOf(info, dim, start, length)
    const element = inner * dtypeSize(info.dtype)
    const bytes = await this.#read(info, outer, length * element, start * element, whole * element)
    return { dtype: info.dtype, shape: info.shape.with(at, length), bytes }
  }

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
    throw noTensor(this.#folder.name, name, this.#fileOf.keys())
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
 * Opens the folder's GGUF file where it is one, else `model.safetensors`, or the shards that `model.safetensors.index.json` names; shards are opened when a tensor of theirs is first
 * asked for. Throws ERR_MODEL_FORMAT where neither is there, or where the index names a file that is absent or outside the folder.
 */
export async function openWeights(folder: ModelFolder, options: WeightsOptions = {}): Promise<Weights> {
  if (folder.gguf !== undefined) return openGgufWeights(folder, options)
  if (await folder.exists(SINGLE)) {
    const file = await openFile(folder, SINGLE)
    const fileOf = new Map([...file.tensors.keys()].map((name) => [name, SINGLE]))
    return new SafetensorsWeights(folder, fileOf, options, [[SINGLE, file]])
  }
  if (!(await folder.exists(INDEX))) {
    throw new ModelFormatError(`${folder.name} holds neither ${SINGLE} nor ${INDEX}; weights in other formats are not read`)
  }
  return new SafetensorsWeights(folder, await readIndex(folder), options, [])
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

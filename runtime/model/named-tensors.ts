// What every reader of a model's weights offers, whatever the files are: tensors by name, whole or in slices.
import type { DType } from '../core/dtype.ts'
import { ArgumentError, checkInteger, ModelFormatError } from '../core/errors.ts'
import { formatShape, resolveDim, type Shape, sameShape, splitAt } from '../core/shape.ts'
import { show } from './json.ts'
import type { TensorInfo } from './safetensors.ts'

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

/** The weights of a model, by the names that Hugging Face gives them. */
export interface Weights {
  /** Bytes of tensors read so far; headers are not counted. */
  readonly bytesRead: number
  names(): string[]
  has(name: string): boolean
  /** Type, shape and place of a tensor; opens its file if need be. */
  info(name: string, expected?: Expected): Promise<TensorInfo>
  /** A whole tensor. */
  read(name: string, expected?: Expected): Promise<TensorBytes>
  /**
   * Elements [start, start + length) along `dim`, read by ranges: of dimension 0 one range, of a later one a range per row, joined where
   * they lie close. `expected` describes the whole tensor. Throws ERR_ARGUMENT or ERR_SHAPE on a slice outside of it.
   */
  readSlice(name: string, dim: number, start: number, length: number, expected?: Expected): Promise<TensorBytes>
  /** Closes the files that were opened. */
  close(): Promise<void>
}

/** Where a slice lies: `outer` runs of `length` of `whole` items of `inner` elements each, along dimension `dim`. */
export interface Slice {
  dim: number
  outer: number
  whole: number
  inner: number
}

/** Throws ERR_ARGUMENT or ERR_SHAPE on a slice outside of the tensor. */
export function sliceOf({ name, shape }: TensorInfo, dim: number, start: number, length: number): Slice {
  const at = resolveDim(dim, shape.length)
  const { outer, length: whole, inner } = splitAt(shape, at)
  checkInteger('start', start, 0)
  checkInteger('length', length, 0)
  if (start + length > whole) {
    throw new ArgumentError(
      `Expected a slice inside dimension ${at} of ${show(name)} ${formatShape(shape)} but received ${start} to ${start + length}`,
    )
  }
  return { dim: at, outer, whole, inner }
}

/** The error for a tensor that `holder` should hold, with the names nearest to it. */
export function noTensor(holder: string, name: string, names: Iterable<string>): ModelFormatError {
  const near = nearNames(name, names).map(show).join(', ')
  return new ModelFormatError(`${holder} holds no tensor ${show(name)}; the nearest names are: ${near || 'none'}`)
}

/** Throws ERR_MODEL_FORMAT unless the tensor is what a caller needs. */
export function checkExpected(info: TensorInfo, expected: Expected): void {
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

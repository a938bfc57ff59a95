// The collectives of the CPU device as plain loops: the same commands, right and slow.
import { type DType, decode, encode } from '../../core/dtype.ts'
import { normScale } from '../../core/portable.ts'
import { OP, REDUCTION } from '../engine/commands.ts'

/** Where a command's words and operands come from. */
export interface Words {
  word(): number
  place(): { buffer: ArrayBuffer; offset: number }
}

/** Element types of these commands; words become numbers as int32 or uint32 where that matters. */
const DTYPES: readonly DType[] = ['float32', 'bfloat16', 'float16', 'uint32']
const SIZES = [4, 2, 2, 4] as const

type Numbers = Float32Array | Int32Array | Uint32Array

/** Runs a command of a collective, whose op has been read; gives the types of its operands. */
export function runCollective(op: number, words: Words): readonly number[] {
  if (op === OP.reduce) return reduce(words)
  if (op === OP.reduceNorm) return reduceNorm(words)
  gather(words)
  return []
}

function reduce(words: Words): number[] {
  const [rows, n, pitch, count, kind, divisor, x, y] = take(words, 8) as [number, number, number, number, number, number, number, number]
  const extent = (rows - 1) * pitch + n
  const dtype = kind >= REDUCTION.minSigned ? 'int32' : (DTYPES[x] as DType)
  const sum = joined(words, count, dtype, SIZES[x] as number, extent, joinOf(kind, x === 3))
  const result = sum.slice(0, rows * n)
  for (let row = 1; row < rows; row++) result.set(sum.subarray(row * pitch, row * pitch + n), row * n)
  if (divisor !== 1) for (let i = 0; i < result.length; i++) result[i] = (result[i] as number) / divisor
  put(words, y === 3 ? dtype : (DTYPES[y] as DType), result)
  return [x, y]
}

function reduceNorm(words: Words): number[] {
  const [rows, n, count, x, type, eps, centered, biased] = take(words, 9) as [
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    number,
  ]
  const [dtype, width] = [DTYPES[type] as DType, SIZES[type] as number]
  const sum = joined(words, count, DTYPES[x] as DType, SIZES[x] as number, rows * n, joinOf(REDUCTION.sum, false))
  const [stream, gamma, bias] = [words.place(), words.place(), words.place()]
  const weight = load(gamma, dtype, width, n)
  const added = biased ? load(bias, dtype, width, n) : null
  const total = load(stream, dtype, width, rows * n).slice()
  for (let i = 0; i < total.length; i++) total[i] = (total[i] as number) + (sum[i] as number)
  if (added) for (let i = 0; i < total.length; i++) total[i] = (total[i] as number) + (added[i % n] as number)
  const stored = encode(dtype, total)
  new Uint8Array(stream.buffer, stream.offset, stored.length).set(stored)
  const s = decode(dtype, stored) as Float32Array
  const gains = Float32Array.from(weight, (w) => (centered ? w + 1 : w))
  const y = new Float32Array(s.length)
  for (let row = 0; row < s.length; row += n) {
    const scale = normScale(s.subarray(row, row + n), eps)
    for (let i = 0; i < n; i++) y[row + i] = Math.fround((s[row + i] as number) * scale) * (gains[i] as number)
  }
  put(words, dtype, y)
  return [x, type]
}

function gather(words: Words): void {
  const [rows, count, pitch] = take(words, 3) as [number, number, number]
  const widths = take(words, count)
  const slices = widths.map((width) => {
    const { buffer, offset } = words.place()
    return new Uint8Array(buffer, offset, rows * width)
  })
  const { buffer, offset } = words.place()
  const y = new Uint8Array(buffer, offset, rows * pitch)
  let column = 0
  for (const [i, slice] of slices.entries()) {
    const width = widths[i] as number
    for (let row = 0; row < rows; row++) y.set(slice.subarray(row * width, (row + 1) * width), row * pitch + column)
    column += width
  }
}

/** The joins, then the slices, `count` elements of each: what they make. */
function joined(words: Words, slices: number, dtype: DType, width: number, count: number, join: Join): Numbers {
  const joins = take(words, slices)
  const stack: Numbers[] = []
  for (const merges of joins) {
    let right: Numbers = load(words.place(), dtype, width, count).slice()
    for (let i = 0; i < merges; i++) {
      const left = stack.pop() as Numbers
      for (let k = 0; k < count; k++) left[k] = join(left[k] as number, right[k] as number)
      right = left
    }
    stack.push(right)
  }
  return stack[0] ?? new Float32Array(count)
}

/** Storing what it gives rounds to float32, or wraps. */
type Join = (a: number, b: number) => number

function joinOf(kind: number, integers: boolean): Join {
  if (kind === REDUCTION.sum) return (a, b) => a + b
  if (kind === REDUCTION.prod) return integers ? Math.imul : (a, b) => a * b
  if (kind === REDUCTION.min || kind === REDUCTION.minSigned) return (a, b) => (Number.isNaN(a) || (a < b && !Number.isNaN(b)) ? a : b)
  return (a, b) => (Number.isNaN(a) || (a > b && !Number.isNaN(b)) ? a : b)
}

function take(words: Words, count: number): number[] {
  return Array.from({ length: count }, () => words.word())
}

function load({ buffer, offset }: ReturnType<Words['place']>, dtype: DType, width: number, count: number): Numbers {
  return decode(dtype, new Uint8Array(buffer, offset, count * width)) as Numbers
}

function put(words: Words, dtype: DType, values: Numbers): void {
  const { buffer, offset } = words.place()
  const bytes = encode(dtype, values)
  new Uint8Array(buffer, offset, bytes.length).set(bytes)
}

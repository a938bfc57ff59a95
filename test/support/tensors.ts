// Tensors for operation tests: random operands of any dtype, outputs poisoned first with guarded neighbours, comparison in units of the last place.
import { expect } from 'vitest'
import { encodeBfloat16, encodeFloat16 } from '../../runtime/core/codecs.ts'
import { type DType, decode, dtypeSize, encode, isFloat, type TensorData } from '../../runtime/core/dtype.ts'
import { type Shape, sizeOf } from '../../runtime/core/shape.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import type { Random } from './random.ts'
import { expectClose } from './reference-ops.ts'

export const FLOATS = ['float32', 'bfloat16', 'float16'] as const

export interface Sample {
  tensor: Tensor
  /** The tensor's own values: rounded to its dtype, widened again. */
  values: Float32Array
}

/** `numbers` on the device, `shift` elements into a storage that is longer than they are. */
export function place(device: Device, numbers: ArrayLike<number>, shape: Shape, dtype: DType = 'float32', shift = 0): Sample {
  const bytes = encode(dtype, numbers)
  const size = dtypeSize(dtype)
  const padded = new Uint8Array(bytes.byteLength + 2 * shift * size).fill(0xff)
  padded.set(bytes, shift * size)
  const whole = Tensor.fromBytes(padded, [padded.length / size], dtype, device)
  const part = whole.narrow(0, shift, sizeOf(shape))
  const tensor = part.reshape(shape)
  whole.dispose()
  part.dispose()
  return { tensor, values: Float32Array.from(decode(dtype, bytes) as Float32Array) }
}

/** Normal values times `scale`. */
export function sample(device: Device, random: Random, shape: Shape, dtype: DType = 'float32', scale = 1, shift = 0): Sample {
  return place(device, random.floats(sizeOf(shape), scale), shape, dtype, shift)
}

/** What an output holds before the operation: NaN for floats, 0xdeadbeef for integers. */
function poison(dtype: DType, bytes: number): Uint8Array<ArrayBuffer> {
  if (isFloat(dtype)) return new Uint8Array(bytes).fill(0xff)
  return Uint8Array.from({ length: bytes }, (_, i) => [0xef, 0xbe, 0xad, 0xde][i % 4] as number)
}

/** A poisoned tensor with `before` poisoned elements before it and `after` behind it in one storage. */
export class Guarded {
  readonly tensor: Tensor
  readonly #whole: Tensor
  readonly #before: number

  constructor(device: Device, shape: Shape, dtype: DType = 'float32', before = 0, after: number = before) {
    const count = before + sizeOf(shape) + after
    this.#whole = Tensor.fromBytes(poison(dtype, count * dtypeSize(dtype)), [count], dtype, device)
    this.#before = before
    using part = this.#whole.narrow(0, before, sizeOf(shape))
    this.tensor = part.reshape(shape)
  }

  /** The tensor's bytes; fails if one outside it has changed. */
  async bytes(): Promise<Uint8Array<ArrayBuffer>> {
    const { dtype, byteLength } = this.tensor
    const all = await this.#whole.bytes()
    const start = this.#before * dtypeSize(dtype)
    const clean = poison(dtype, all.byteLength)
    const own = all.slice(start, start + byteLength)
    clean.set(own, start)
    expect(Buffer.compare(all, clean), 'bytes beside the output').toBe(0)
    this.#whole.dispose()
    this.tensor.dispose()
    return own
  }

  async data(): Promise<TensorData> {
    return decode(this.tensor.dtype, await this.bytes())
  }
}

/** Codes of a sign-magnitude format as integers in the order of their values. */
function ordered(code: number): number {
  return code & 0x8000 ? -(code & 0x7fff) : code
}

export interface Tolerance {
  /** For float32. */
  abs?: number
  rel?: number
  what?: string
}

/**
 * `bytes` hold the correctly rounded `expected`: float32 within `abs + rel * |expected|`, the 16-bit floats within one unit in the last
 * place beyond that.
 */
export function expectRounded(
  dtype: DType,
  bytes: Uint8Array,
  expected: ArrayLike<number>,
  { abs = 0, rel = 0, what = dtype }: Tolerance,
): void {
  if (dtype === 'float32') {
    expectClose(decode(dtype, bytes) as Float32Array, expected, { abs, rel, what })
    return
  }
  const round = dtype === 'bfloat16' ? encodeBfloat16 : encodeFloat16
  const got = new Uint16Array(bytes.slice().buffer)
  expect(got.length, what).toBe(expected.length)
  for (let i = 0; i < got.length; i++) {
    const e = expected[i] as number
    const off = abs + rel * Math.abs(e)
    const [low, high] = round([e - off, e + off]) as unknown as [number, number]
    const code = ordered(got[i] as number)
    if (code < ordered(low) - 1 || code > ordered(high) + 1) {
      throw new Error(`${what}[${i}]: got ${(decode(dtype, bytes) as Float32Array)[i]}, expected ${e} within an ulp`)
    }
  }
}

// Random weights in GGUF blocks on a device, the values that core/blocks.ts gives them, and what a product with them may be off by.
import { BLOCK_FORMATS } from '../../runtime/core/blocks.ts'
import { encodeFloat16 } from '../../runtime/core/codecs.ts'
import { BLOCK_DTYPES, type BlockDType, decode, dtypeSize } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import type { Random } from './random.ts'
import * as reference from './reference-ops.ts'

export const BLOCK_TYPES = Object.keys(BLOCK_DTYPES) as BlockDType[]

/** Bytes of a block where its float16 scales are. */
const SCALES: Readonly<Record<BlockDType, readonly number[]>> = {
  q8_0: [0],
  q4_0: [0],
  q4_1: [0, 2],
  q4_k: [0, 2],
  q5_k: [0, 2],
  q6_k: [208],
}

/** Random bytes as `count` elements; their scales are normal values times `size`, or with 0 any finite float16. */
export function randomBlocks(random: Random, dtype: BlockDType, count: number, size: number): Uint8Array<ArrayBuffer> {
  const bytes = Uint8Array.from({ length: count * dtypeSize(dtype) }, () => random.int(256))
  for (let at = 0; at < bytes.length; at += BLOCK_FORMATS[BLOCK_DTYPES[dtype]].bytes) {
    for (const scale of SCALES[dtype]) {
      const code = size > 0 ? (encodeFloat16([random.normal() * size])[0] as number) : random.int(0x7c00) | (random.int(2) << 15)
      bytes.set([code & 255, code >> 8], at + scale)
    }
  }
  return bytes
}

export interface Weights {
  tensor: Tensor
  bytes: Uint8Array<ArrayBuffer>
  values: Float32Array
}

/** Random rows at byte `offset` of a storage whose other bytes are all ones. */
export function blockWeights(
  device: Device,
  random: Random,
  dtype: BlockDType,
  [rows, k]: readonly [number, number],
  { size = 0.02, offset = 0 }: { size?: number; offset?: number } = {},
): Weights {
  const bytes = randomBlocks(random, dtype, rows * k, size)
  const all = new Uint8Array(offset + bytes.length + 64).fill(0xff)
  all.set(bytes, offset)
  const storage = device.allocate(all.length)
  device.write(storage, 0, all)
  return { tensor: new Tensor(device, storage, [rows, k], dtype, offset), bytes, values: decode(dtype, bytes) as Float32Array }
}

/** Throws unless |error| <= (k + 2) * 2^-24 * sum |x w|, and half an ULP for the bias. */
export function expectProduct(
  got: Float32Array,
  x: Float32Array,
  w: Float32Array,
  shape: { t: number; k: number; n: number },
  bias?: Float32Array,
): void {
  const expected = reference.matmul(x, w, shape, bias)
  const sizes = reference.matmul(x.map(Math.abs), w.map(Math.abs), shape)
  if (got.length !== expected.length) throw new Error(`${got.length} results, expected ${expected.length}`)
  for (const [i, value] of expected.entries()) {
    const most = (shape.k + 2) * 2 ** -24 * (sizes[i] as number) + (bias ? 2 ** -24 * Math.abs(value) : 0)
    if (!(Math.abs((got[i] as number) - value) <= most))
      throw new Error(`${JSON.stringify(shape)}: [${i}] is ${got[i]}, expected ${value} within ${most}`)
  }
}

// The element types of a tensor: names, sizes, and conversion between raw bytes and JavaScript numbers.
import { BLOCK_FORMATS, type BlockType, decodeBlocks } from './blocks.ts'
import {
  decodeBfloat16,
  decodeFloat16,
  decodeFp4e2m1,
  decodeFp8e4m3,
  decodeFp8e5m2,
  encodeBfloat16,
  encodeFloat16,
  encodeFp4e2m1,
  encodeFp8e4m3,
  encodeFp8e5m2,
} from './codecs.ts'
import { ArgumentError, DTypeError, describe } from './errors.ts'

export type DType =
  | 'float32'
  | 'float16'
  | 'bfloat16'
  | 'float8_e4m3fn'
  | 'float8_e5m2'
  | 'float4_e2m1x2'
  | 'int8'
  | 'uint8'
  | 'int32'
  | 'uint32'
  | 'int64'
  | 'uint64'
  | BlockDType

/** Weights in blocks along the last dimension, whose length is whole blocks; bytes as in GGUF files. Made by `Tensor.fromBytes` alone. */
export type BlockDType = 'q8_0' | 'q4_0' | 'q4_1' | 'q4_k' | 'q5_k' | 'q6_k'

/** What GGUF files call them. */
export const BLOCK_DTYPES: Readonly<Record<BlockDType, BlockType>> = {
  q8_0: 'Q8_0',
  q4_0: 'Q4_0',
  q4_1: 'Q4_1',
  q4_k: 'Q4_K',
  q5_k: 'Q5_K',
  q6_k: 'Q6_K',
}

/** Elements that a dtype stores together: 1 but for blocks. */
export function blockLength(dtype: DType): number {
  return isBlockDType(dtype) ? BLOCK_FORMATS[BLOCK_DTYPES[dtype]].values : 1
}

export function isBlockDType(dtype: DType): dtype is BlockDType {
  return Object.hasOwn(BLOCK_DTYPES, dtype)
}

/** Bytes of one element, exact fractions for blocks. `float4_e2m1x2` counts pairs: one element is one byte that holds two values, low nibble first. */
const SIZES: Readonly<Record<DType, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  float8_e4m3fn: 1,
  float8_e5m2: 1,
  float4_e2m1x2: 1,
  int8: 1,
  uint8: 1,
  int32: 4,
  uint32: 4,
  int64: 8,
  uint64: 8,
  q8_0: sizeInBlock('Q8_0'),
  q4_0: sizeInBlock('Q4_0'),
  q4_1: sizeInBlock('Q4_1'),
  q4_k: sizeInBlock('Q4_K'),
  q5_k: sizeInBlock('Q5_K'),
  q6_k: sizeInBlock('Q6_K'),
}

/** Blocks hold powers of two of elements, so that products with this are exact. */
function sizeInBlock(type: BlockType): number {
  return BLOCK_FORMATS[type].bytes / BLOCK_FORMATS[type].values
}

/** All but blocks: what numbers are converted to, element by element. */
export const DTYPES: readonly DType[] = (Object.keys(SIZES) as DType[]).filter((dtype) => !isBlockDType(dtype))

export function isDType(value: unknown): value is DType {
  return typeof value === 'string' && Object.hasOwn(SIZES, value)
}

/** Bytes of one element of `dtype`, a fraction for blocks; throws ERR_DTYPE on an unknown name. */
export function dtypeSize(dtype: DType): number {
  if (!isDType(dtype)) throw new DTypeError(`Unknown dtype ${describe(dtype)}; expected one of ${Object.keys(SIZES).join(', ')}`)
  return SIZES[dtype]
}

export function isFloat(dtype: DType): boolean {
  return dtype.startsWith('float') || dtype === 'bfloat16'
}

/** What `Tensor.data()` returns: floats of any width as Float32Array, integers in their own typed array. */
export type TensorData =
  | Float32Array<ArrayBuffer>
  | Int8Array<ArrayBuffer>
  | Uint8Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | Uint32Array<ArrayBuffer>
  | BigInt64Array<ArrayBuffer>
  | BigUint64Array<ArrayBuffer>

/** Raw little-endian bytes of `dtype` as numbers. The result never aliases `bytes`. */
export function decode(dtype: DType, bytes: Uint8Array): TensorData {
  return decodeOwned(dtype, bytes.slice())
}

/** As decode, of bytes that nobody else uses: the result may be that memory. */
export function decodeOwned(dtype: DType, bytes: Uint8Array<ArrayBuffer>): TensorData {
  if (isBlockDType(dtype)) return decodeBlocks(BLOCK_DTYPES[dtype], bytes)
  const own = bytes.byteLength === bytes.buffer.byteLength ? bytes.buffer : bytes.slice().buffer
  switch (dtype) {
    case 'float32':
      return new Float32Array(own)
    case 'float16':
      return decodeFloat16(new Uint16Array(own))
    case 'bfloat16':
      return decodeBfloat16(new Uint16Array(own))
    case 'float8_e4m3fn':
      return Float32Array.from(new Uint8Array(own), decodeFp8e4m3)
    case 'float8_e5m2':
      return Float32Array.from(new Uint8Array(own), decodeFp8e5m2)
    case 'float4_e2m1x2': {
      const packed = new Uint8Array(own)
      const out = new Float32Array(packed.length * 2)
      packed.forEach((byte, i) => {
        out[2 * i] = decodeFp4e2m1(byte & 15)
        out[2 * i + 1] = decodeFp4e2m1(byte >> 4)
      })
      return out
    }
    case 'int8':
      return new Int8Array(own)
    case 'uint8':
      return new Uint8Array(own)
    case 'int32':
      return new Int32Array(own)
    case 'uint32':
      return new Uint32Array(own)
    case 'int64':
      return new BigInt64Array(own)
    case 'uint64':
      return new BigUint64Array(own)
  }
}

/** Numbers as raw bytes of `dtype`, rounded to nearest even; fp8 and fp4 saturate (see codecs.ts). */
export function encode(dtype: DType, values: ArrayLike<number> | ArrayLike<bigint>): Uint8Array<ArrayBuffer> {
  dtypeSize(dtype)
  if (isBlockDType(dtype)) throw new DTypeError(`Numbers are not quantised to ${dtype} here; give its blocks to Tensor.fromBytes`)
  if (dtype === 'int64' || dtype === 'uint64') {
    const out = dtype === 'int64' ? new BigInt64Array(values.length) : new BigUint64Array(values.length)
    for (let i = 0; i < values.length; i++) out[i] = BigInt(values[i] as number | bigint)
    return new Uint8Array(out.buffer)
  }
  if (typeof values[0] === 'bigint') {
    throw new ArgumentError(`Expected numbers for dtype ${dtype} but received bigints; convert them, or use int64 or uint64`)
  }
  const numbers = values as ArrayLike<number>
  switch (dtype) {
    case 'float32':
      return bytesOf(Float32Array.from(numbers))
    case 'float16':
      return bytesOf(encodeFloat16(numbers))
    case 'bfloat16':
      return bytesOf(encodeBfloat16(numbers))
    case 'float8_e4m3fn':
      return Uint8Array.from(numbers, (x) => encodeFp8e4m3(x))
    case 'float8_e5m2':
      return Uint8Array.from(numbers, (x) => encodeFp8e5m2(x))
    case 'float4_e2m1x2': {
      if (numbers.length % 2 !== 0)
        throw new ArgumentError(`Expected an even number of values for float4_e2m1x2 but received ${numbers.length}`)
      const out = new Uint8Array(numbers.length / 2)
      for (let i = 0; i < out.length; i++) {
        out[i] = encodeFp4e2m1(numbers[2 * i] as number) | (encodeFp4e2m1(numbers[2 * i + 1] as number) << 4)
      }
      return out
    }
    case 'int8':
      return bytesOf(Int8Array.from(numbers))
    case 'uint8':
      return Uint8Array.from(numbers)
    case 'int32':
      return bytesOf(Int32Array.from(numbers))
    case 'uint32':
      return bytesOf(Uint32Array.from(numbers))
  }
}

function bytesOf(
  array: Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer> | Int8Array<ArrayBuffer> | Int32Array<ArrayBuffer> | Uint32Array<ArrayBuffer>,
): Uint8Array<ArrayBuffer> {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
}

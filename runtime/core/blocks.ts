// How GGUF files store elements: plain floats, or blocks of small integers that share scales; each block's bytes to float32.
import { decodeBfloat16, decodeFloat16 } from './codecs.ts'

export type BlockType = 'F32' | 'F16' | 'BF16' | 'Q8_0' | 'Q4_0' | 'Q4_1' | 'Q4_K' | 'Q5_K' | 'Q6_K'

export interface BlockFormat {
  /** Elements of a block; they are neighbours of the last dimension. */
  readonly values: number
  readonly bytes: number
}

export const BLOCK_FORMATS: Readonly<Record<BlockType, BlockFormat>> = {
  F32: { values: 1, bytes: 4 },
  F16: { values: 1, bytes: 2 },
  BF16: { values: 1, bytes: 2 },
  Q8_0: { values: 32, bytes: 34 },
  Q4_0: { values: 32, bytes: 18 },
  Q4_1: { values: 32, bytes: 20 },
  Q4_K: { values: 256, bytes: 144 },
  Q5_K: { values: 256, bytes: 176 },
  Q6_K: { values: 256, bytes: 210 },
}

/**
 * The float32 values of whole blocks, in `out` where it is given. Each value is rounded once, as in the reference: all products are exact in
 * float64, and so are the sums.
 */
export function decodeBlocks(
  type: BlockType,
  bytes: Uint8Array,
  out: Float32Array<ArrayBuffer> = new Float32Array((bytes.length / BLOCK_FORMATS[type].bytes) * BLOCK_FORMATS[type].values),
): Float32Array<ArrayBuffer> {
  if (type === 'F32') new Uint8Array(out.buffer, out.byteOffset, out.byteLength).set(bytes)
  else if (type === 'F16') out.set(decodeFloat16(new Uint16Array(bytes.slice().buffer)))
  else if (type === 'BF16') out.set(decodeBfloat16(new Uint16Array(bytes.slice().buffer)))
  else {
    const { values, bytes: size } = BLOCK_FORMATS[type]
    const decode = DECODERS[type]
    for (let from = 0, to = 0; from < bytes.length; from += size, to += values) decode(bytes, from, out, to)
  }
  return out
}

let halves: Float32Array | undefined

/** The float16 at byte `at`. */
function half(bytes: Uint8Array, at: number): number {
  halves ??= decodeFloat16(Uint16Array.from({ length: 65536 }, (_, code) => code))
  return halves[(bytes[at] as number) | ((bytes[at + 1] as number) << 8)] as number
}

/** Decodes the block at byte `from` to the elements from `to` on. */
type DecodeBlock = (bytes: Uint8Array, from: number, out: Float32Array, to: number) => void

/** d, then 32 signed bytes q: d * q. */
const q8_0: DecodeBlock = (bytes, from, out, to) => {
  const d = half(bytes, from)
  for (let i = 0; i < 32; i++) out[to + i] = d * (((bytes[from + 2 + i] as number) << 24) >> 24)
}

/** d, then 16 bytes, elements 0-15 in the low nibbles q and 16-31 in the high ones: d * (q - 8). */
const q4_0: DecodeBlock = (bytes, from, out, to) => {
  const d = half(bytes, from)
  for (let i = 0; i < 16; i++) {
    const pair = bytes[from + 2 + i] as number
    out[to + i] = d * ((pair & 15) - 8)
    out[to + 16 + i] = d * ((pair >> 4) - 8)
  }
}

/** d, m, then nibbles q as in Q4_0: d * q + m. */
const q4_1: DecodeBlock = (bytes, from, out, to) => {
  const d = half(bytes, from)
  const m = half(bytes, from + 2)
  for (let i = 0; i < 16; i++) {
    const pair = bytes[from + 4 + i] as number
    out[to + i] = d * (pair & 15) + m
    out[to + 16 + i] = d * (pair >> 4) + m
  }
}

/** The 6 bits of scale `i` of 8, in 12 bytes at `at`: i < 4 the low bits of byte i, else split over two bytes. */
function scaleOf(bytes: Uint8Array, at: number, i: number): number {
  if (i < 4) return (bytes[at + i] as number) & 63
  return ((bytes[at + i + 4] as number) & 15) | (((bytes[at + i - 4] as number) >> 6) << 4)
}

/** The 6 bits of minimum `i` of 8, in the same 12 bytes. */
function minimumOf(bytes: Uint8Array, at: number, i: number): number {
  if (i < 4) return (bytes[at + i + 4] as number) & 63
  return ((bytes[at + i + 4] as number) >> 4) | (((bytes[at + i] as number) >> 6) << 4)
}

/**
 * d, m, 12 bytes of scales and minima, for Q5_K 32 bytes of fifth bits, then 128 bytes of nibbles. Eight runs of 32 elements: run i is the low
 * (i even) or high nibbles of bytes 32 * floor(i / 2) on, its fifth bits are bit i of the 32 bytes: d * scale * q - m * minimum.
 */
function kBlock(fifthBits: boolean): DecodeBlock {
  return (bytes, from, out, to) => {
    const d = half(bytes, from)
    const m = half(bytes, from + 2)
    const high = from + 16
    for (let run = 0; run < 8; run++) {
      const scale = d * scaleOf(bytes, from + 4, run)
      const minimum = m * minimumOf(bytes, from + 4, run)
      const low = high + (fifthBits ? 32 : 0) + 32 * (run >> 1)
      const shift = 4 * (run & 1)
      for (let i = 0; i < 32; i++) {
        const fifth = fifthBits ? (((bytes[high + i] as number) >> run) & 1) << 4 : 0
        out[to + 32 * run + i] = scale * ((((bytes[low + i] as number) >> shift) & 15) | fifth) - minimum
      }
    }
  }
}

/**
 * 128 bytes of nibbles, 64 bytes of upper pairs of bits, 16 signed bytes of scales, d. Two halves of four runs of 32 elements: run r of a half
 * takes nibbles of bytes 32 * (r & 1) on (high ones from r = 2) and bit pair r of the 32 upper bytes; a scale holds for 16: d * scale * (q - 32).
 */
const q6_K: DecodeBlock = (bytes, from, out, to) => {
  const d = half(bytes, from + 208)
  for (let run = 0; run < 8; run++) {
    const part = run >> 2
    const r = run & 3
    const low = from + 64 * part + 32 * (r & 1)
    const high = from + 128 + 32 * part
    for (let i = 0; i < 32; i++) {
      const q = (((bytes[low + i] as number) >> (4 * (r >> 1))) & 15) | ((((bytes[high + i] as number) >> (2 * r)) & 3) << 4)
      const scale = d * (((bytes[from + 192 + 2 * run + (i >> 4)] as number) << 24) >> 24)
      out[to + 32 * run + i] = scale * (q - 32)
    }
  }
}

const DECODERS: Readonly<Record<Exclude<BlockType, 'F32' | 'F16' | 'BF16'>, DecodeBlock>> = {
  Q8_0: q8_0,
  Q4_0: q4_0,
  Q4_1: q4_1,
  Q4_K: kBlock(false),
  Q5_K: kBlock(true),
  Q6_K: q6_K,
}

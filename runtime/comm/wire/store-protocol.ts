// What the store and its clients say to each other: frames of a kind, a request's number, a key and a value, behind their length.
import type { ErrorCode } from '../../core/errors.ts'

/** Changes with every change of what is said. */
export const STORE_VERSION = 1
/** The first bytes of a store's greeting. */
export const STORE_MAGIC = 'rankmesh'
/** Bytes of a frame: of one who has not proven yet that he knows the token, and of one who has. */
export const GREETING_LIMIT = 512
export const FRAME_LIMIT: number = 2 ** 20
export const NONCE_BYTES = 32

/** Sent by the server first (hello), then in turn until welcome; then requests and answers, which carry the request's number. */
export const KIND = {
  /** Server: magic (8), version (1), nonce (32). */
  hello: 1,
  /** Client: nonce (32), proof (32). */
  proof: 2,
  /** Server: proof (32), rank that hosts the store (u32). */
  welcome: 3,
  /** Server: the token was not the same. */
  refused: 4,
  /** A sign of life; nothing follows from it. */
  beat: 5,
  set: 6,
  /** Value: milliseconds to wait (u32). */
  get: 7,
  /** Value: what to add (f64). */
  add: 8,
  claim: 9,
  delete: 10,
  /** Value: rank and size (u32 each). */
  join: 11,
  leave: 12,
  /** Value: a Fault as JSON. From the server: to everybody. */
  fail: 13,
  /** To all other ranks. */
  notice: 14,
  /** Server: done; the value is the result. */
  ok: 15,
  /** Server: the key has not come in time. */
  absent: 16,
  /** Server: cannot be done; the value says why. */
  error: 17,
} as const

/** Something that ended a group, or all groups with a rank. */
export interface Fault {
  code: ErrorCode
  message: string
  /** In the world. */
  rank: number
  /** The group it ended, with all that were split off it; all groups with this rank where absent. */
  scope?: string
}

export interface Frame {
  kind: number
  id: number
  key: string
  value: Uint8Array
}

const HEAD = 4 + 1 + 4 + 2
const NOTHING = new Uint8Array(0)

export function encodeFrame(kind: number, id = 0, key = '', value: Uint8Array = NOTHING): Uint8Array {
  const name = new TextEncoder().encode(key)
  const frame = new Uint8Array(HEAD + name.byteLength + value.byteLength)
  const view = new DataView(frame.buffer)
  view.setUint32(0, frame.byteLength, true)
  view.setUint8(4, kind)
  view.setUint32(5, id, true)
  view.setUint16(9, name.byteLength, true)
  frame.set(name, HEAD)
  frame.set(value, HEAD + name.byteLength)
  return frame
}

/** Takes a stream apart into frames. */
export class FrameReader {
  /** The longest frame that is let in, in bytes. */
  limit: number
  #pending: Uint8Array = NOTHING

  constructor(limit: number) {
    this.limit = limit
  }

  /** Gives every frame that is complete to `take`. @throws Error where the bytes are no frames; the stream is of no more use then. */
  push(chunk: Uint8Array, take: (frame: Frame) => void): void {
    let bytes = chunk
    if (this.#pending.byteLength > 0) {
      bytes = new Uint8Array(this.#pending.byteLength + chunk.byteLength)
      bytes.set(this.#pending)
      bytes.set(chunk, this.#pending.byteLength)
    }
    let at = 0
    while (bytes.byteLength - at >= 4) {
      const view = new DataView(bytes.buffer, bytes.byteOffset + at, bytes.byteLength - at)
      const length = view.getUint32(0, true)
      if (length < HEAD || length > this.limit) throw new Error(`a frame of ${length} bytes, outside [${HEAD}, ${this.limit}]`)
      if (view.byteLength < length) break
      const keyEnd = HEAD + view.getUint16(9, true)
      if (keyEnd > length) throw new Error('a key longer than its frame')
      const frame = bytes.subarray(at, at + length)
      const key = new TextDecoder().decode(frame.subarray(HEAD, keyEnd))
      take({ kind: view.getUint8(4), id: view.getUint32(5, true), key, value: frame.slice(keyEnd) })
      at += length
    }
    this.#pending = bytes.slice(at)
  }
}

export function uint32s(...values: number[]): Uint8Array {
  const bytes = new Uint8Array(values.length * 4)
  const view = new DataView(bytes.buffer)
  for (const [i, value] of values.entries()) view.setUint32(i * 4, value, true)
  return bytes
}

/** @throws RangeError where the bytes are too few. */
export function uint32At(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(at, true)
}

export function float64(value: number): Uint8Array {
  return new Uint8Array(Float64Array.of(value).buffer)
}

export function float64At(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getFloat64(0, true)
}

export function textBytes(text: string): Uint8Array {
  return new TextEncoder().encode(text)
}

export function bytesText(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes)
}

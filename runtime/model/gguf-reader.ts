// Reads the values of a GGUF header one after the other, each checked against the bytes that the file has before memory is taken for it.
import { ModelFormatError } from '../core/errors.ts'

type NumberArray = Uint8Array | Int8Array | Uint16Array | Int16Array | Uint32Array | Int32Array | Float32Array | Float64Array

/** A metadata value. 64-bit integers are rounded to numbers. */
export type GgufValue = number | boolean | string | readonly string[] | NumberArray

/** The header goes on beyond the bytes at hand, but not beyond the file: read more and start again. */
export class MoreNeeded extends Error {}

const STRING = 8
const ARRAY = 9
const BOOL = 7

interface Scalar {
  bytes: number
  read(view: DataView, at: number): number
  array(buffer: ArrayBuffer): NumberArray
}

const SCALARS: Readonly<Record<number, Scalar>> = {
  0: { bytes: 1, read: (view, at) => view.getUint8(at), array: (buffer) => new Uint8Array(buffer) },
  1: { bytes: 1, read: (view, at) => view.getInt8(at), array: (buffer) => new Int8Array(buffer) },
  2: { bytes: 2, read: (view, at) => view.getUint16(at, true), array: (buffer) => new Uint16Array(buffer) },
  3: { bytes: 2, read: (view, at) => view.getInt16(at, true), array: (buffer) => new Int16Array(buffer) },
  4: { bytes: 4, read: (view, at) => view.getUint32(at, true), array: (buffer) => new Uint32Array(buffer) },
  5: { bytes: 4, read: (view, at) => view.getInt32(at, true), array: (buffer) => new Int32Array(buffer) },
  6: { bytes: 4, read: (view, at) => view.getFloat32(at, true), array: (buffer) => new Float32Array(buffer) },
  [BOOL]: { bytes: 1, read: (view, at) => view.getUint8(at), array: (buffer) => new Uint8Array(buffer).map(Math.sign) },
  10: { bytes: 8, read: (view, at) => Number(view.getBigUint64(at, true)), array: (buffer) => numbers(new BigUint64Array(buffer)) },
  11: { bytes: 8, read: (view, at) => Number(view.getBigInt64(at, true)), array: (buffer) => numbers(new BigInt64Array(buffer)) },
  12: { bytes: 8, read: (view, at) => view.getFloat64(at, true), array: (buffer) => new Float64Array(buffer) },
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function numbers(values: ArrayLike<bigint>): Float64Array {
  return Float64Array.from(values, Number)
}

export class HeaderReader {
  readonly file: string
  /** Bytes of the whole file. */
  readonly size: number
  readonly #bytes: Uint8Array<ArrayBuffer>
  readonly #view: DataView
  #at = 0

  /** `bytes` are the first of the file's `size`. */
  constructor(file: string, bytes: Uint8Array<ArrayBuffer>, size: number) {
    this.file = file
    this.size = size
    this.#bytes = bytes
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  /** Bytes read so far. */
  get at(): number {
    return this.#at
  }

  u32(what: string): number {
    return this.#view.getUint32(this.#take(4, what), true)
  }

  /** Throws ERR_MODEL_FORMAT on an integer that a number cannot hold. */
  u64(what: string): number {
    const value = this.#view.getBigUint64(this.#take(8, what), true)
    if (value > Number.MAX_SAFE_INTEGER) throw new ModelFormatError(`${this.file} says ${value} for ${what}, which no file can hold`)
    return Number(value)
  }

  /** A number of things of at least `bytes` bytes each; throws ERR_MODEL_FORMAT where the rest of the file is too short for them. */
  count(what: string, bytes: number): number {
    const value = this.#view.getBigUint64(this.#take(8, what), true)
    const rest = this.size - this.#at
    if (value > BigInt(Math.floor(rest / bytes))) {
      throw new ModelFormatError(
        `${this.file} says ${value} for ${what}, but only ${rest} bytes follow; the file is damaged or was cut short`,
      )
    }
    return Number(value)
  }

  string(what: string): string {
    const length = this.count(`the length of ${what}`, 1)
    const from = this.#take(length, what)
    try {
      return utf8.decode(this.#bytes.subarray(from, from + length))
    } catch (cause) {
      throw new ModelFormatError(`In ${this.file}, ${what} is not valid UTF-8; the file is damaged`, { cause })
    }
  }

  /** A value with its type before it. */
  value(what: string): GgufValue {
    const type = this.u32(`the type of ${what}`)
    if (type === STRING) return this.string(what)
    if (type === ARRAY) return this.#array(what)
    const scalar = this.#scalar(type, what)
    const value = scalar.read(this.#view, this.#take(scalar.bytes, what))
    return type === BOOL ? value !== 0 : value
  }

  #array(what: string): GgufValue {
    const type = this.u32(`the element type of ${what}`)
    if (type === STRING) {
      const length = this.count(`the length of ${what}`, 8)
      const strings: string[] = []
      for (let i = 0; i < length; i++) strings.push(this.string(what))
      return strings
    }
    if (type === ARRAY) throw new ModelFormatError(`In ${this.file}, ${what} is an array of arrays, which are not read`)
    const scalar = this.#scalar(type, what)
    const length = scalar.bytes * this.count(`the length of ${what}`, scalar.bytes)
    const from = this.#take(length, what)
    return scalar.array(this.#bytes.slice(from, from + length).buffer)
  }

  #scalar(type: number, what: string): Scalar {
    const scalar = SCALARS[type]
    if (!scalar) throw new ModelFormatError(`In ${this.file}, ${what} is of unknown type ${type}; expected 0 to 12`)
    return scalar
  }

  /** Where the next `length` bytes begin; they are then behind. */
  #take(length: number, what: string): number {
    const from = this.#at
    if (from + length > this.size) {
      throw new ModelFormatError(`${this.file} ends after ${this.size} bytes, inside ${what}; it was cut short`)
    }
    if (from + length > this.#bytes.length) throw new MoreNeeded()
    this.#at = from + length
    return from
  }
}

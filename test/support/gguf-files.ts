// GGUF files made in memory, sound ones and ones that no writer would make.

export interface RawGgufTensor {
  name: string
  /** As the format orders them: the fastest dimension first. */
  dims: (number | bigint)[]
  /** The format's number for a type. */
  type: number
  bytes: Uint8Array
  /** Of the data; where absent, the next aligned place. */
  offset?: number | bigint
}

/** A typed value: `[type, value]`, an array `[9, [element type, values]]`; bytes stand for themselves. */
export type RawValue = [type: number, value: unknown] | Uint8Array

export interface RawGguf {
  magic?: string
  version?: number
  tensorCount?: bigint
  keyCount?: bigint
  metadata?: [key: string, value: RawValue][]
  tensors?: RawGgufTensor[]
  alignment?: number
}

export class Bytes {
  readonly #parts: Uint8Array[] = []

  raw(bytes: Uint8Array): this {
    this.#parts.push(bytes)
    return this
  }

  number(size: number, write: (view: DataView) => void): this {
    const bytes = new Uint8Array(size)
    write(new DataView(bytes.buffer))
    return this.raw(bytes)
  }

  u32(value: number): this {
    return this.number(4, (view) => view.setUint32(0, value, true))
  }

  u64(value: number | bigint): this {
    return this.number(8, (view) => view.setBigUint64(0, BigInt(value), true))
  }

  text(text: string): this {
    const bytes = new TextEncoder().encode(text)
    return this.u64(bytes.length).raw(bytes)
  }

  value([type, value]: [number, unknown]): this {
    return this.u32(type).element(type, value)
  }

  element(type: number, value: unknown): this {
    if (type === 8) return this.text(value as string)
    if (type === 9) {
      const [inner, values] = value as [number, unknown[]]
      this.u32(inner).u64(values.length)
      for (const item of values) this.element(inner, item)
      return this
    }
    const write = NUMBERS[type]
    if (!write) throw new Error(`no type ${type}`)
    return this.number(write[0], (view) => write[1](view, value as never))
  }

  done(): Uint8Array<ArrayBuffer> {
    return new Uint8Array(Buffer.concat(this.#parts))
  }
}

const NUMBERS: Record<number, [size: number, write: (view: DataView, value: never) => void]> = {
  0: [1, (view, value: number) => view.setUint8(0, value)],
  1: [1, (view, value: number) => view.setInt8(0, value)],
  2: [2, (view, value: number) => view.setUint16(0, value, true)],
  3: [2, (view, value: number) => view.setInt16(0, value, true)],
  4: [4, (view, value: number) => view.setUint32(0, value, true)],
  5: [4, (view, value: number) => view.setInt32(0, value, true)],
  6: [4, (view, value: number) => view.setFloat32(0, value, true)],
  7: [1, (view, value: boolean) => view.setUint8(0, Number(value))],
  10: [8, (view, value: number) => view.setBigUint64(0, BigInt(value), true)],
  11: [8, (view, value: number) => view.setBigInt64(0, BigInt(value), true)],
  12: [8, (view, value: number) => view.setFloat64(0, value, true)],
}

/** A GGUF file; whatever is given is written, however wrong. */
export function ggufFile({
  magic = 'GGUF',
  version = 3,
  metadata = [],
  tensors = [],
  alignment = 32,
  ...counts
}: RawGguf): Uint8Array<ArrayBuffer> {
  const out = new Bytes().raw(new TextEncoder().encode(magic)).u32(version)
  out.u64(counts.tensorCount ?? tensors.length).u64(counts.keyCount ?? metadata.length)
  for (const [key, value] of metadata) {
    out.text(key)
    if (value instanceof Uint8Array) out.raw(value)
    else out.value(value)
  }
  const aligned = (n: number) => Math.ceil(n / alignment) * alignment
  const data = new Bytes()
  let end = 0
  for (const { name, dims, type, bytes, offset } of tensors) {
    out.text(name).u32(dims.length)
    for (const dim of dims) out.u64(dim)
    out.u32(type).u64(offset ?? end)
    const padded = new Uint8Array(aligned(bytes.length))
    padded.set(bytes)
    data.raw(padded)
    end += padded.length
  }
  const header = out.done()
  const padding = new Uint8Array(aligned(header.length) - header.length)
  return new Bytes().raw(header).raw(padding).raw(data.done()).done()
}

/** A tensor of F32 values. */
export function floats(name: string, dims: number[], values: ArrayLike<number>): RawGgufTensor {
  return { name, dims, type: 0, bytes: new Uint8Array(Float32Array.from(values).buffer) }
}

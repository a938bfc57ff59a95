// Runs before each test file: typed arrays with the same bits are equal at once, where vitest would compare them element by element.
import { expect } from 'vitest'

expect.addEqualityTesters([
  (a: unknown, b: unknown): boolean | undefined => {
    if (!isTyped(a) || !isTyped(b) || a.constructor !== b.constructor || a.byteLength !== b.byteLength) return undefined
    return Buffer.compare(bytesOf(a), bytesOf(b)) === 0 ? true : undefined // other bits may be equal numbers
  },
])

const isTyped = (value: unknown): value is ArrayBufferView => ArrayBuffer.isView(value) && !(value instanceof DataView)
const bytesOf = ({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array => new Uint8Array(buffer, byteOffset, byteLength)

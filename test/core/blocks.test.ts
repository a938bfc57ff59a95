// Blocks of GGUF files: every type's values, bit by bit, as the gguf Python library gives them.
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { BLOCK_FORMATS, type BlockType, decodeBlocks } from '../../runtime/core/blocks.ts'

interface Fixture {
  blockValues: number
  blockBytes: number
  blocks: number
  raw: string
  values: string
}

const { types } = JSON.parse(readFileSync(new URL('../fixtures/gguf-blocks.json', import.meta.url), 'utf8')) as {
  types: Record<string, Fixture>
}
const bytesOf = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, 'base64'))

describe('blocks', () => {
  const names = (Object.keys(BLOCK_FORMATS) as BlockType[]).filter((name) => name !== 'F32')
  it.each(names)('of %s give the values of the reference', (name) => {
    const { blockValues, blockBytes, blocks, raw, values } = types[name] as Fixture
    expect(BLOCK_FORMATS[name]).toEqual({ values: blockValues, bytes: blockBytes })
    const decoded = decodeBlocks(name, bytesOf(raw))
    expect(decoded.length).toBe(blocks * blockValues)
    expect(Buffer.compare(new Uint8Array(decoded.buffer), bytesOf(values))).toBe(0)
  })

  it('of F32 are their own values, at any alignment, into memory that is given', () => {
    const floats = Float32Array.of(1.5, -0, Number.NaN, 3e38)
    const shifted = new Uint8Array(17)
    shifted.set(new Uint8Array(floats.buffer), 1)
    const out = new Float32Array(4)
    expect(decodeBlocks('F32', shifted.subarray(1), out)).toBe(out)
    expect(Buffer.compare(new Uint8Array(out.buffer), new Uint8Array(floats.buffer))).toBe(0)
  })

  it('with infinite or no scales stay what the scales make of them', () => {
    const block = new Uint8Array(34).fill(1)
    block.set([0x00, 0x7c]) // infinity
    block[2] = 0
    const values = decodeBlocks('Q8_0', block)
    expect(values[0]).toBeNaN()
    expect(values[1]).toBe(Number.POSITIVE_INFINITY)
    block.set([0, 0])
    expect([...decodeBlocks('Q8_0', block)]).toEqual(Array.from({ length: 32 }, () => 0))
  })
})

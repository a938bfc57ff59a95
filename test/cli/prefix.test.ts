// The prefix before each line of a rank: whatever the chunks, lines come whole; endless lines are cut, between characters.
import { Readable } from 'node:stream'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { linePrefixer, MAX_LINE_BYTES } from '../../runtime/cli/prefix.ts'
import { Random, seed } from '../support/random.ts'

/** What comes out when `bytes` go in, cut at the offsets `cuts`: the text, and the chunks it came in. */
async function prefixed(bytes: Buffer, cuts: readonly number[], prefix = '[3] '): Promise<{ text: string; chunks: string[] }> {
  const edges = [0, ...[...cuts].sort((a, b) => a - b), bytes.length]
  const pieces = edges.slice(1).map((end, i) => bytes.subarray(edges[i], end))
  const chunks = await Readable.from(pieces, { objectMode: false }).pipe(linePrefixer(prefix)).toArray()
  return { text: Buffer.concat(chunks).toString(), chunks: chunks.map(String) }
}

describe('lines under a prefix', () => {
  it.each([
    ['', ''],
    ['a', '[3] a\n'],
    ['a\n', '[3] a\n'],
    ['\n', '[3] \n'],
    ['a\n\nb', '[3] a\n[3] \n[3] b\n'],
    ['äß€😀\nx', '[3] äß€😀\n[3] x\n'],
    ['50%\r100%\n', '[3] 50%\r100%\n'],
  ])('%j', async (text, expected) => expect((await prefixed(Buffer.from(text), [])).text).toBe(expected))

  const start = seed() | 0
  it(`however the bytes are cut, and never part of a line alone (seed ${start})`, async () => {
    const text = fc.string({ unit: fc.constantFrom('a', 'é', '€', '😀', '\n', ' '), maxLength: 40 })
    const property = fc.asyncProperty(text, fc.array(fc.nat({ max: 100 }), { maxLength: 8 }), async (given, cuts) => {
      const bytes = Buffer.from(given)
      const found = await prefixed(
        bytes,
        cuts.map((cut) => Math.min(cut, bytes.length)),
      )
      const lines = given.endsWith('\n') || given === '' ? given.split('\n').slice(0, -1) : given.split('\n')
      expect(found.text).toBe(lines.map((line) => `[3] ${line}\n`).join(''))
      for (const chunk of found.chunks) expect(chunk).toMatch(/^\[3\] [\s\S]*\n$/)
    })
    await fc.assert(property, { seed: start, numRuns: 500 })
  })

  const longSeed = seed()
  it(`cuts a line without an end, between characters, and loses nothing (seed ${longSeed})`, async () => {
    const random = new Random(longSeed)
    const characters = ['a', 'é', '€', '😀']
    const text = Array.from({ length: 150_000 }, () => characters[random.int(4)]).join('')
    const bytes = Buffer.from(`${text}\nend`)
    const cuts = Array.from({ length: 30 }, () => random.int(bytes.length))
    const lines = (await prefixed(bytes, cuts)).text.split('\n')
    expect(lines.pop()).toBe('')
    expect(lines.pop()).toBe('[3] end')
    for (const line of lines) {
      expect(line.slice(0, 4)).toBe('[3] ')
      expect(Buffer.byteLength(line)).toBeLessThanOrEqual(MAX_LINE_BYTES + 4)
      expect(line).not.toContain('\uFFFD')
    }
    expect(lines.length).toBeLessThan(bytes.length / MAX_LINE_BYTES + 2)
    expect(lines.map((line) => line.slice(4)).join('')).toBe(text)
  })
})

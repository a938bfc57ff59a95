// Conversions between float types, bit by bit: every 16-bit pattern one way, random and critical float32 the other.
import { describe, expect, it } from 'vitest'
import { decodeBfloat16, decodeFloat16, encodeBfloat16, encodeFloat16 } from '../../../runtime/core/codecs.ts'
import { Tensor } from '../../../runtime/core/tensor.ts'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'
import { FLOATS, Guarded, sample } from '../tensors.ts'

export function castCases(device: Device): void {
  const start = seed()
  const random = new Random(start)

  const NARROW = [
    { dtype: 'float16', encode: encodeFloat16, decode: decodeFloat16, mantissa: 10, nan: 0x7e00, infinity: 0x7c00 },
    { dtype: 'bfloat16', encode: encodeBfloat16, decode: decodeBfloat16, mantissa: 7, nan: 0x7fc0, infinity: 0x7f80 },
  ] as const

  const bytesOf = (words: Uint16Array | Uint32Array): Uint8Array => new Uint8Array(words.buffer, words.byteOffset, words.byteLength)

  /** Float32 bits worth trying for a type of `mantissa` bits: any bits, values at and beside each tie, subnormals, infinities, NaN, zeros. */
  function criticalBits(mantissa: number): Uint32Array {
    const bits: number[] = [0, 0x80000000, 0x7f800000, 0xff800000, 0x7f800001, 0xffc00000, 0x7fffffff, 0xff812345, 1, 0x807fffff]
    const drop = 23 - mantissa
    for (let i = 0; i < 20_000; i++) {
      bits.push(random.bits())
      const tie = ((random.bits() & (0xffffffff << drop)) | (1 << (drop - 1))) >>> 0
      bits.push(tie, (tie + 1) >>> 0, (tie - 1) >>> 0)
      const aroundHalf = (random.bits() & 0x80000000) + (101 << 23) + random.int(46 << 23) // 2^-26 to 2^19: all of float16 and beyond
      bits.push(aroundHalf, (aroundHalf & (0xffffffff << drop)) >>> 0)
      const subnormalTie = (((102 + random.int(12)) << 23) + ((random.int(8) << 20) | (random.int(2) << 19))) >>> 0
      bits.push(subnormalTie, (subnormalTie + random.int(3) - 1) >>> 0)
    }
    for (const edge of [65504, 65519.996, 65520, 65536, 2 ** -14, 2 ** -24, 2 ** -25, 2 ** -25 * 1.0000001, 3.3895313e38, 3.3961776e38]) {
      for (const sign of [1, -1]) bits.push(new Uint32Array(Float32Array.of(sign * edge).buffer)[0] as number)
    }
    return Uint32Array.from(bits)
  }

  /** Asserts equal words; NaN codes may differ in payload where `anyNan` says so. */
  function expectWords(got: Uint16Array | Uint32Array, expected: Uint16Array | Uint32Array, what: string): void {
    const bad = expected.findIndex((word, i) => word !== got[i])
    if (bad >= 0) {
      const [g, e] = [got[bad], expected[bad]].map((word) => (word as number).toString(16))
      throw new Error(`${what}: [${bad}] is 0x${g}, expected 0x${e}`)
    }
    expect(got.length).toBe(expected.length)
  }

  for (const { dtype, encode, decode, mantissa, nan, infinity } of NARROW) {
    describe(`${dtype} (seed ${start})`, () => {
      it('widens all 65,536 patterns exactly, to any NaN where they are NaN', async () => {
        const all = Uint16Array.from({ length: 65536 }, (_, i) => i)
        const out = new Guarded(device, [65536], 'float32', 1)
        device.cast(Tensor.fromBytes(bytesOf(all), [65536], dtype, device), 'float32', { out: out.tensor })
        const got = new Uint32Array((await out.bytes()).buffer)
        const expected = new Uint32Array(decode(all).buffer)
        // A device may quieten a NaN; everything else, subnormals and -0 included, is exact.
        for (let i = 0; i < 65536; i++) {
          if ((i & 0x7fff) <= infinity) continue
          expect((got[i] as number) & 0x7fffffff, `pattern ${i}`).toBeGreaterThan(0x7f800000)
          expected[i] = got[i] as number
        }
        expectWords(got, expected, 'widened')
      })

      it('narrows float32 to the nearest, ties to even', async () => {
        const bits = criticalBits(mantissa)
        const expected = encode(new Float32Array(bits.buffer))
        const out = new Guarded(device, [bits.length], dtype, 2)
        device.cast(Tensor.fromBytes(bytesOf(bits), [bits.length], 'float32', device), dtype, { out: out.tensor })
        expectWords(new Uint16Array((await out.bytes()).buffer), expected, 'narrowed')
      })

      it('narrows and widens back all patterns to themselves', async () => {
        const all = Uint16Array.from({ length: 65536 }, (_, i) => i)
        const wide = device.cast(Tensor.fromBytes(bytesOf(all), [65536], dtype, device), 'float32')
        const back = new Uint16Array((await device.cast(wide, dtype).bytes()).buffer)
        const expected = all.map((code) => ((code & 0x7fff) > infinity ? (code & 0x8000) | nan : code))
        expectWords(back, expected, 'there and back')
      })

      it('goes to its own type unchanged but for the payload of NaN', async () => {
        const all = Uint16Array.from({ length: 65536 }, (_, i) => i)
        const same = new Uint16Array((await device.cast(Tensor.fromBytes(bytesOf(all), [65536], dtype, device), dtype).bytes()).buffer)
        const expected = all.map((code) => ((code & 0x7fff) > infinity ? (code & 0x8000) | nan : code))
        expectWords(same, expected, 'own type')
      })
    })
  }

  describe(`shapes and places (seed ${start})`, () => {
    for (const from of FLOATS) {
      for (const to of FLOATS) {
        it(`${from} to ${to}: odd lengths inside longer storages`, async () => {
          for (const n of [1, 7, 64, 1000, 4096, 4097]) {
            const x = sample(device, random, [n], from, 1, random.int(4))
            const out = new Guarded(device, [n], to, random.int(4))
            device.cast(x.tensor, to, { out: out.tensor })
            const expected = Tensor.from(x.values, { dtype: to })
            expect(Buffer.compare(await out.bytes(), await expected.bytes()), `${n} elements`).toBe(0)
          }
        })
      }
    }
  })

  describe('subnormal float32', () => {
    it('is moved unchanged by cast; arithmetic on it may take it for zero', async () => {
      const bits = Uint32Array.of(1, 0x7fffff, 0x80000001, 0x00400000)
      const tiny = Tensor.fromBytes(bytesOf(bits), [4], 'float32', device)
      expect(new Uint32Array((await device.cast(tiny, 'float32').bytes()).buffer)).toEqual(bits)
      const sums = (await device.add(tiny, Tensor.zeros([4], { device })).data()) as Float32Array
      const values = new Float32Array(bits.buffer)
      sums.forEach((sum, i) => void expect([0, values[i]]).toContain(sum === 0 ? 0 : sum))
    })
  })
}

// Copies, byte by byte: runs of any alignment and stride, whole tensors, parts of one storage.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import { copyBytes, copyRuns, type Runs, rangeOf } from '../../runtime/device/webgpu/launch.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'

const device = await testDevice()
afterAll(() => device.dispose())
const start = seed()
const random = new Random(start)

const randomBytes = (n: number): Uint8Array => Uint8Array.from({ length: n }, () => random.int(256))
const onDevice = (bytes: Uint8Array): Tensor => Tensor.fromBytes(bytes, [bytes.length], 'uint8', device)

/** What copyRuns does, in plain loops. */
function copied(src: Uint8Array, from: number, dst: Uint8Array, to: number, runs: Runs): Uint8Array {
  const out = dst.slice()
  for (let b = 0; b < runs.b; b++) {
    for (let a = 0; a < runs.a; a++) {
      const at = from + a * runs.srcA + b * runs.srcB
      out.set(src.subarray(at, at + runs.width), to + b * runs.dstB + a * runs.dstA)
    }
  }
  return out
}

/** Runs whose numbers are multiples of `unit`, with gaps between them on both sides. */
function randomRuns(unit: number, most: number): { runs: Runs; from: number; to: number; srcBytes: number; dstBytes: number } {
  const some = (n: number): number => unit * random.int(n)
  const [a, b] = [1 + random.int(most), 1 + random.int(most)]
  const width = unit + some(20)
  const dstA = width + some(4)
  const dstB = a * dstA + some(4)
  const [srcA, srcB] = random.int(2) === 0 ? [width + some(4), a * (width + 4 * unit)] : [b * (width + 4 * unit), width + some(4)]
  const runs = { a, b, width, srcA, srcB, dstA, dstB }
  const [from, to] = [some(5), some(5)]
  const srcBytes = from + (a - 1) * srcA + (b - 1) * srcB + width + some(3)
  const dstBytes = to + (b - 1) * dstB + (a - 1) * dstA + width + some(9)
  return { runs, from, to, srcBytes, dstBytes }
}

for (const [unit, name] of [
  [1, 'bytes'],
  [2, 'halves'],
  [4, 'words'],
  [16, 'quads'],
] as const) {
  describe(`copyRuns of ${name} (seed ${start})`, () => {
    for (const most of [1, 2, 9]) {
      it(`up to ${most} x ${most} runs at random strides`, async () => {
        for (let round = 0; round < 8; round++) {
          const { runs, from, to, srcBytes, dstBytes } = randomRuns(unit, most)
          const [src, dst] = [randomBytes(srcBytes), randomBytes(dstBytes)]
          const [x, y] = [onDevice(src), onDevice(dst)]
          const [source, target] = [rangeOf(device.gpu, x), rangeOf(device.gpu, y)]
          copyRuns(
            device.sink,
            { ...source, offset: source.offset + from, byteLength: srcBytes - from },
            { ...target, offset: target.offset + to, byteLength: dstBytes - to },
            runs,
          )
          const expected = copied(src, from, dst, to, runs)
          expect(Buffer.compare(await y.bytes(), expected), JSON.stringify({ runs, from, to })).toBe(0)
          for (const tensor of [x, y]) tensor.dispose()
        }
      })
    }
  })
}

describe(`copyBytes (seed ${start})`, () => {
  it('of any length from any place to any place', async () => {
    const src = randomBytes(300)
    const x = onDevice(src)
    for (let round = 0; round < 40; round++) {
      const [from, to, length] = [random.int(9), random.int(9), random.int(280)]
      const dst = randomBytes(300)
      const y = onDevice(dst)
      const [source, target] = [rangeOf(device.gpu, x), rangeOf(device.gpu, y)]
      copyBytes(device.sink, { ...source, offset: source.offset + from }, { ...target, offset: target.offset + to }, length)
      dst.set(src.subarray(from, from + length), to)
      expect(Buffer.compare(await y.bytes(), dst), `${length} bytes from ${from} to ${to}`).toBe(0)
      y.dispose()
    }
  })

  it('more words than one row of workgroups can move', async () => {
    const own = device.gpu.tuning.flat
    const words = Uint32Array.from({ length: 2_200_001 }, () => random.bits())
    const all = Tensor.fromBytes(new Uint8Array(words.buffer), [words.length], 'uint32', device)
    Object.assign(device.gpu.tuning, { flat: 16 })
    device.copy(all.narrow(0, 0, 1_100_000), all.narrow(0, 1_100_001, 1_100_000)) // one buffer: by a kernel; 68,750 workgroups
    Object.assign(device.gpu.tuning, { flat: own })
    words.copyWithin(1_100_001, 0, 1_100_000)
    expect(Buffer.compare(await all.bytes(), new Uint8Array(words.buffer))).toBe(0)
    all.dispose()
  })
})

describe(`copy of tensors (seed ${start})`, () => {
  for (const dtype of ['uint8', 'bfloat16', 'float32', 'int64'] as const) {
    it(`${dtype}: parts of two storages, and of one that overlap`, async () => {
      const size = { uint8: 1, bfloat16: 2, float32: 4, int64: 8 }[dtype]
      const n = 1 + random.int(60)
      const [src, dst] = [randomBytes(100 * size), randomBytes(100 * size)]
      const x = Tensor.fromBytes(src, [100], dtype, device)
      const y = Tensor.fromBytes(dst, [100], dtype, device)
      const [from, to] = [random.int(40), random.int(40)]
      device.copy(x.narrow(0, from, n), y.narrow(0, to, n))
      dst.set(src.subarray(from * size, (from + n) * size), to * size)
      expect(Buffer.compare(await y.bytes(), dst)).toBe(0)

      device.copy(y.narrow(0, from, n), y.narrow(0, to, n))
      dst.copyWithin(to * size, from * size, (from + n) * size)
      expect(Buffer.compare(await y.bytes(), dst)).toBe(0)
    })
  }

  it('reshapes on the way', async () => {
    const x = Tensor.arange(12, { device })
    const y = Tensor.zeros([3, 4], { device })
    device.copy(x, y)
    expect(await y.data()).toEqual(await x.data())
  })
})

// Weights in GGUF blocks on the CPU, every type by every kind of kernels, gpu.js and loops: values bit by bit, products, columns, the tree's bits.
import { afterAll, describe, expect, it } from 'vitest'
import { blockLength, dtypeSize } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { BLOCK_TYPES, blockWeights, expectProduct } from '../support/block-samples.ts'
import { cpuDevices, reason } from '../support/cpu.ts'
import { Random, seed } from '../support/random.ts'
import { FLOATS, Guarded, sample } from '../support/tensors.ts'

const start = seed()
const random = new Random(start)
const loops = CpuDevice.open(null)
afterAll(() => loops.dispose())

const TOKENS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 33]
/** Blocks in a row, and rows. */
const SIZES = [
  [1, 1],
  [2, 9],
  [5, 23],
  [19, 13],
] as const

if (reason) it.skip(`blocks by native kernels${reason}`, () => {})

for (const { name, open } of cpuDevices()) {
  const device = open()
  afterAll(() => device.dispose())

  describe.each(BLOCK_TYPES)(`%s on ${name} (seed ${start})`, (type) => {
    const length = blockLength(type)

    it.each(FLOATS)('embedding to %s: any scale, any row, any byte of a storage', async (dtype) => {
      for (const blocks of [1, 2, 5]) {
        const [rows, n, first] = [1 + random.int(20), blocks * length, random.int(5)]
        const table = blockWeights(device, random, type, [rows, n], { size: 0, offset: random.int(70) })
        const ids = Array.from({ length: 1 + random.int(30) }, () => random.int(rows + 2 + first))
        const out = new Guarded(device, [ids.length, n], dtype, random.int(3))
        device.embedding(Tensor.from(Uint32Array.from(ids), { device }), table.tensor, { first, out: out.tensor })
        const expected = new Float32Array(ids.length * n)
        for (const [i, id] of ids.entries()) {
          if (id >= first && id < first + rows) expected.set(table.values.subarray((id - first) * n, (id - first + 1) * n), i * n)
        }
        expect(Buffer.compare(await out.bytes(), await Tensor.from(expected, { dtype }).bytes()), `${rows} x ${blocks}`).toBe(0)
      }
    })

    it.each(FLOATS)('products with %s, with bias and without, in columns of wider rows', async (dtype) => {
      for (const [blocks, outs] of SIZES) {
        const k = blocks * length
        const w = blockWeights(device, random, type, [outs, k], { offset: random.int(70) })
        for (const t of TOKENS) {
          const x = sample(device, random, [t, k], dtype, 1, random.int(5))
          const bias = random.int(2) ? sample(device, random, [outs]) : undefined
          const [column, behind] = [random.int(4), random.int(4)]
          const width = column + outs + behind
          const out = new Guarded(device, [t, width], 'float32', random.int(5))
          device.matmul(x.tensor, w.tensor, { ...(bias && { bias: bias.tensor }), out: out.tensor, column })
          const rows = (await out.data()) as Float32Array
          const got = rows.filter((_, i) => i % width >= column && i % width < column + outs)
          const rest = rows.filter((_, i) => i % width < column || i % width >= column + outs)
          expect(rest.every(Number.isNaN)).toBe(true)
          expectProduct(got, x.values, w.values, { t, k, n: outs }, bias?.values)
        }
      }
    })

    it('a row has the same bits in any company', async () => {
      const [k, outs, many] = [9 * length, 29, TOKENS.at(-1) as number]
      const x = sample(device, random, [many, k])
      const w = blockWeights(device, random, type, [outs, k])
      const all = await device.matmul(x.tensor, w.tensor).bytes()
      for (const few of TOKENS) {
        const part = await device.matmul(x.tensor.narrow(0, 0, few), w.tensor).bytes()
        expect(Buffer.compare(part, all.subarray(0, part.length)), `the first ${few}`).toBe(0)
      }
    })

    it('the tree has the bits that loops give, and those of the decoded weights', async () => {
      for (const [blocks, outs] of SIZES) {
        const k = blocks * length
        const w = blockWeights(device, random, type, [outs, k], { offset: random.int(70) })
        const same = Tensor.fromBytes(w.bytes, [outs, k], type, loops)
        const decoded = Tensor.from(w.values, { shape: [outs, k], device })
        for (const block of [4, 4 * (1 + random.int(70)), 32, 128, 1024]) {
          const t = TOKENS[random.int(TOKENS.length)] as number
          const x = random.floats(t * k)
          const [here, there] = [device, loops].map((on) => Tensor.from(x, { shape: [t, k], device: on })) as [Tensor, Tensor]
          const expected = await loops.matmulTree(there, same, { block, whole: true }).bytes()
          const out = new Guarded(device, [t, outs], 'float32', random.int(5))
          device.matmulTree(here, w.tensor, { block, whole: true, out: out.tensor })
          const what = `${t} x ${k} x ${outs}, blocks of ${block}`
          expect(Buffer.compare(await out.bytes(), expected), what).toBe(0)
          expect(Buffer.compare(await device.matmulTree(here, decoded, { block, whole: true }).bytes(), expected), what).toBe(0)
          const first = random.int(9)
          const parts = await device.matmulTree(here, w.tensor, { block, first }).bytes()
          expect(Buffer.compare(parts, await loops.matmulTree(there, same, { block, first }).bytes()), `${what} from ${first}`).toBe(0)
          expectProduct(new Float32Array(expected.slice().buffer), x, w.values, { t, k, n: outs })
        }
      }
    })

    it('a tree in columns', async () => {
      const [t, k, outs, width, column] = [3, 2 * length, 5, 9, 3]
      const x = sample(device, random, [t, k])
      const w = blockWeights(device, random, type, [outs, k])
      const out = new Guarded(device, [t, width])
      device.matmulTree(x.tensor, w.tensor, { block: 32, whole: true, out: out.tensor, column })
      const alone = (await device.matmulTree(x.tensor, w.tensor, { block: 32, whole: true }).data()) as Float32Array
      const rows = (await out.data()) as Float32Array
      const expected = Float32Array.from(rows, (_, i) => {
        const o = (i % width) - column
        return o >= 0 && o < outs ? (alone[Math.floor(i / width) * outs + o] as number) : Number.NaN
      })
      expect(rows).toEqual(expected)
    })

    it('rows that are no whole blocks, or past the end of their storage, are refused', () => {
      expect(() => Tensor.zeros([2, length / 2], { dtype: type, device })).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }))
      const storage = device.allocate(3 * length * dtypeSize(type))
      expect(() => new Tensor(device, storage, [2, 2 * length], type)).toThrow(expect.objectContaining({ code: 'ERR_SHAPE' }))
      storage.release()
    })
  })
}

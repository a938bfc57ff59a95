// Products into columns of a wider output, by every kernel: the bits of the product alone, and nothing beside it is touched.
import { afterAll, describe, expect, it } from 'vitest'
import type { Tensor } from '../../runtime/core/tensor.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'
import { Guarded, sample } from '../support/tensors.ts'
import { tuned } from '../support/ways.ts'

const device = await testDevice()
afterAll(() => device.dispose())

const start = seed()
const random = new Random(start)
const plain = tuned(device, { tiled: false })
const alone = tuned(device, { tiled: true, matvecLanes: 1, row: 64 })
const shared = tuned(device, { tiled: true, matvecLanes: 16, row: 256 })

type Run = (x: Tensor, w: Tensor, options: { bias: Tensor; out?: Tensor; column?: number }) => Tensor
const matmul: Run = (x, w, options) => device.matmul(x, w, options)
const tree: Run = (x, w, options) => device.matmulTree(x, w, { ...options, block: 32, whole: true })

/** The elements of `bytes`, rows of `width`, from `column` on; fails where one beside them is no longer poisoned. */
function cut(bytes: Uint8Array, { outs, width, column }: { outs: number; width: number; column: number }): Uint8Array {
  const rows = bytes.length / (4 * width)
  const own = new Uint8Array(rows * outs * 4)
  for (let row = 0; row < rows; row++) {
    const at = 4 * (row * width + column)
    own.set(bytes.subarray(at, at + 4 * outs), row * 4 * outs)
    bytes.fill(0xff, at, at + 4 * outs)
  }
  expect(
    bytes.every((byte) => byte === 0xff),
    'columns beside the product',
  ).toBe(true)
  return own
}

describe(`into columns (seed ${start})`, () => {
  const ways = [
    { name: 'matmul', way: plain, run: matmul, tokens: [1, 4, 17] },
    { name: 'matvec, 1 lane a row', way: alone, run: matmul, tokens: [1, 3] },
    { name: 'matvec, 16 lanes a row', way: shared, run: matmul, tokens: [1, 4] },
    { name: 'matmul_tiled', way: shared, run: matmul, tokens: [5, 65] },
    { name: 'matmul_tree', way: plain, run: tree, tokens: [1, 5, 8] },
  ]
  for (const { name, way, run, tokens } of ways) {
    it(name, () =>
      way(async () => {
        for (const t of tokens) {
          for (const [k, outs] of [
            [36, 1],
            [64, 7],
            [100, 67],
          ] as const) {
            const [x, w, bias] = [sample(device, random, [t, k]), sample(device, random, [outs, k]), sample(device, random, [outs])]
            const expected = await run(x.tensor, w.tensor, { bias: bias.tensor }).bytes()
            const behind = random.int(9)
            for (const column of [0, 1 + random.int(70)]) {
              const width = column + outs + behind
              const out = new Guarded(device, [t, width], 'float32', random.int(3))
              expect(run(x.tensor, w.tensor, { bias: bias.tensor, out: out.tensor, column }).shape).toEqual([t, width])
              const own = cut(await out.bytes(), { outs, width, column })
              expect(Buffer.compare(own, expected), `${t} x ${k} x ${outs} at ${column} of ${width}`).toBe(0)
            }
          }
        }
      }),
    )
  }

  it('two products side by side, in the storage of their x', async () => {
    const [t, k, outs] = [3, 32, 8]
    const whole = sample(device, random, [t * (2 * outs + k)]).tensor
    const [a, b] = [sample(device, random, [outs, k]), sample(device, random, [outs, k])]
    const x = sample(device, random, [t, k])
    const expected = await Promise.all([device.matmul(x.tensor, a.tensor), device.matmul(x.tensor, b.tensor)].map((y) => y.bytes()))
    const out = whole.narrow(0, 0, t * 2 * outs).reshape([t, 2 * outs])
    const inside = whole.narrow(0, t * 2 * outs, t * k).reshape([t, k])
    inside.set(x.values)
    device.matmul(inside, a.tensor, { out, column: 0 })
    device.matmul(inside, b.tensor, { out, column: outs })
    const bytes = await out.bytes()
    for (const [i, product] of expected.entries()) {
      for (let row = 0; row < t; row++) {
        const at = 4 * (row * 2 * outs + i * outs)
        expect(Buffer.compare(bytes.subarray(at, at + 4 * outs), product.subarray(row * 4 * outs, (row + 1) * 4 * outs))).toBe(0)
      }
    }
  })

  it.each([
    ['matmul', matmul],
    ['matmulTree', tree],
  ])('%s of nothing leaves out alone', async (_, run) => {
    const bias = sample(device, random, [0]).tensor
    const out = new Guarded(device, [2, 5])
    run(sample(device, random, [2, 8]).tensor, sample(device, random, [0, 8]).tensor, { bias, out: out.tensor, column: 5 })
    expect((await out.bytes()).every((byte) => byte === 0xff)).toBe(true)
  })

  it.each([
    ['without out', 0, undefined, 'ERR_ARGUMENT'],
    ['past the end', 4, [2, 8], 'ERR_SHAPE'],
    ['before the beginning', -1, [2, 8], 'ERR_ARGUMENT'],
    ['of another number of rows', 0, [3, 8], 'ERR_SHAPE'],
  ] as const)('refuses a column %s', (_, column, shape, code) => {
    const [x, w, bias] = [sample(device, random, [2, 8]), sample(device, random, [5, 8]), sample(device, random, [5])]
    const out = shape && sample(device, random, shape).tensor
    for (const run of [matmul, tree])
      expect(() => run(x.tensor, w.tensor, { bias: bias.tensor, column, ...(out && { out }) })).toThrow(expect.objectContaining({ code }))
  })
})

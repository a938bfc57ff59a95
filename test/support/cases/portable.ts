// What has the same bits on every kind of device: each operation against the loops, bit for bit.
import { describe, expect, it } from 'vitest'
import { BLOCK_FORMATS } from '../../../runtime/core/blocks.ts'
import { BLOCK_DTYPES, type BlockDType, type DType, encode } from '../../../runtime/core/dtype.ts'
import { Tensor } from '../../../runtime/core/tensor.ts'
import { CpuDevice } from '../../../runtime/device/cpu/device.ts'
import type { Device } from '../../../runtime/device/device.ts'
import { Random, seed } from '../random.ts'

const start = seed()
const FLOATS = ['float32', 'bfloat16', 'float16'] as const
/** Where SiLU turns: zeros, the ends of e^x, and far beyond them. */
const EDGES = [
  0,
  -0,
  1,
  -1,
  88.7228,
  -88.7228,
  88.723,
  -88.723,
  87.33,
  -87.33,
  87.331,
  -87.34,
  104,
  -104,
  2000,
  -2000,
  2 ** -20,
  -(2 ** -20),
]

type Values = { values: Float32Array; shape: number[]; dtype?: DType }

/** `run` on both devices, of tensors with the same bytes: their results are the same bytes. */
async function expectAlike(
  device: Device,
  operands: readonly Values[],
  run: (device: Device, tensors: Tensor[]) => Tensor[],
): Promise<void> {
  const [expected, received] = await Promise.all(
    [CpuDevice.open(null), device].map(async (on) => {
      const tensors = operands.map(({ values, shape, dtype = 'float32' }) => Tensor.fromBytes(encode(dtype, values), shape, dtype, on))
      const results = run(on, tensors)
      const bytes = await Promise.all(results.map(async (tensor) => Buffer.from(new Uint8Array(await tensor.bytes()))))
      for (const tensor of new Set([...tensors, ...results])) tensor.dispose()
      return bytes
    }),
  )
  for (const [i, bytes] of (received as Buffer[]).entries()) {
    const other = (expected as Buffer[])[i] as Buffer
    const at = bytes.findIndex((byte, k) => byte !== other[k])
    expect(at, `byte ${at} of result ${i} is ${bytes[at]}, by the loops ${other[at]}`).toBe(-1)
  }
}

export function portableCases(device: Device): void {
  describe(`portable on ${device.description} (seed ${start})`, () => {
    const random = new Random(start)
    const spread = (n: number): Float32Array => random.floats(n).map((x) => x * 2 ** (random.int(12) - 6))

    it.each(FLOATS)('rmsNorm of %s', async (dtype) => {
      for (const [rows, n] of [
        [1, 4],
        [2, 60],
        [3, 64],
        [2, 257],
        [5, 1000],
        [1, 4100],
      ] as const) {
        for (const zeroCentered of [false, true]) {
          const operands = [
            { values: spread(rows * n), shape: [rows, n], dtype },
            { values: random.floats(n), shape: [n], dtype },
          ]
          const options = { eps: 10 ** -(4 + random.int(4)), zeroCentered, portable: true }
          await expectAlike(device, operands, (on, [x, w]) => [on.rmsNorm(x as Tensor, w as Tensor, options)])
        }
      }
    })

    it.each(FLOATS)('siluMul of %s', async (dtype) => {
      for (const n of [4, 33, 5000]) {
        const values = random.floats(4 * n, 12)
        if (n === 33) for (const row of [0, 1]) values.set(EDGES, row * 2 * n)
        await expectAlike(device, [{ values, shape: [2, 2 * n], dtype }], (on, [x]) => [on.siluMul(x as Tensor, { portable: true })])
      }
    })

    it.each([
      [4, 2, 1, 1, 0, 0],
      [20, 6, 2, 3, 5, 0],
      [64, 4, 4, 2, 40, 0],
      [64, 4, 2, 7, 30, 12],
      [128, 2, 1, 1, 99, 33],
      [256, 1, 1, 2, 3, 0],
      [16, 1, 1, 2, 1060, 0],
      [12, 1, 1, 1, 2100, 0],
    ])('attention with heads of %i: %i over %i, %i tokens from %i, window %i', async (dim, heads, kvHeads, tokens, first, window) => {
      const capacity = first + tokens + 2
      const operands = [
        { values: random.floats(tokens * heads * dim, 2), shape: [tokens, heads * dim] },
        { values: random.floats(capacity * kvHeads * dim, 2), shape: [capacity, kvHeads * dim] },
        { values: spread(capacity * kvHeads * dim), shape: [capacity, kvHeads * dim] },
      ]
      const shape = { heads, kvHeads, dim, start: first, window, portable: true }
      await expectAlike(device, operands, (on, [q, keys, values]) => [
        on.attention(q as Tensor, { ...shape, keys: keys as Tensor, values: values as Tensor }),
      ])
    })

    it('ropeAppend', async () => {
      const [tokens, heads, kvHeads, dim, first, capacity] = [3, 4, 2, 12, 5, 9]
      const operands = [
        { values: spread(tokens * (heads + 2 * kvHeads) * dim), shape: [tokens, (heads + 2 * kvHeads) * dim] },
        { values: Float32Array.from({ length: capacity * dim }, () => 2 * random.uniform() - 1), shape: [capacity, dim / 2, 2] },
        { values: new Float32Array(capacity * kvHeads * dim), shape: [capacity, kvHeads * dim] },
        { values: new Float32Array(capacity * kvHeads * dim), shape: [capacity, kvHeads * dim] },
      ]
      await expectAlike(device, operands, (on, tensors) => {
        const [x, table, keys, values] = tensors as [Tensor, Tensor, Tensor, Tensor]
        return [on.ropeAppend(x, { table, keys, values, heads, kvHeads, dim, start: first }), keys, values]
      })
    })

    it.each(FLOATS)('matmulTree with weights of %s', async (dtype) => {
      for (const [tokens, k, outs, block, whole] of [
        [1, 100, 7, 32, true],
        [5, 256, 33, 32, true],
        [3, 96, 20, 16, false],
      ] as const) {
        const operands = [
          { values: spread(tokens * k), shape: [tokens, k] },
          { values: random.floats(outs * k), shape: [outs, k], dtype },
        ]
        await expectAlike(device, operands, (on, [x, w]) => [on.matmulTree(x as Tensor, w as Tensor, { block, whole })])
      }
    })

    it.each(Object.keys(BLOCK_DTYPES) as BlockDType[])('matmulTree with weights of %s', async (dtype) => {
      const [tokens, k, outs] = [3, 512, 9]
      const { values, bytes } = BLOCK_FORMATS[BLOCK_DTYPES[dtype]]
      // Any bytes are blocks; their scales, 16-bit floats, are kept from being infinite.
      const raw = Uint8Array.from({ length: ((outs * k) / values) * bytes }, () => random.int(256))
      for (let i = 1; i < raw.length; i++) if (((raw[i] as number) & 0x7c) === 0x7c) raw[i] = (raw[i] as number) & 0x3b
      const x = spread(tokens * k)
      const results = await Promise.all(
        [CpuDevice.open(null), device].map(async (on) => {
          using a = Tensor.fromBytes(encode('float32', x), [tokens, k], 'float32', on)
          using w = Tensor.fromBytes(raw, [outs, k], dtype, on)
          using y = on.matmulTree(a, w, { block: 32, whole: true })
          return Buffer.from(new Uint8Array(await y.bytes())).toString('hex')
        }),
      )
      expect(results[1]).toBe(results[0])
    })
  })
}

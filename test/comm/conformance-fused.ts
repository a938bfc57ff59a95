// Conformance of allReduceResidualBiasRMSNorm: the residual bit by bit, the norm against float64, the same bits for a row whatever goes with it.
import { expect, it } from 'vitest'
import { type DType, decode, dtypeSize, encode } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { RankContext } from '../../runtime/scheduler/launch.ts'
import { fixedOrder } from '../support/fixed-order.ts'
import * as reference from '../support/reference-ops.ts'
import { type Group, type Placed, placed, poison, STYLES } from './conformance.ts'
import { FLOATS } from './conformance-reduce.ts'

/** Error of the norm: float32 sums of up to 4097 squares; 16 bits: half a step, and that where float32 decides a tie. */
const TOLERANCE: Partial<Record<DType, { rel: number; abs: number }>> = {
  float32: { rel: 2e-6, abs: 1e-30 },
  bfloat16: { rel: 2 ** -8 + 3e-6, abs: 1e-30 },
  float16: { rel: 2 ** -11 + 3e-6, abs: 2 ** -25 },
}

interface Inputs {
  what: string
  rows: number
  n: number
  /** By rank. */
  x: Uint8Array[]
  residual: Uint8Array
  weight: Uint8Array
  bias: Uint8Array | null
  xType: DType
  type: DType
  eps: number
  zeroCentered: boolean
}

type Layout = {
  style: (typeof STYLES)[number]
  residual: 'shared' | (typeof STYLES)[number]
  out: 'none' | 'shared' | (typeof STYLES)[number]
}

function inputs(
  group: Group,
  given: { rows: number; n: number; xType: DType; type: DType; bias: boolean; zeroCentered: boolean; eps: number; what: string },
): Inputs {
  const { rows, n, xType, type } = given
  const floats = (size: number, scale: number): Float32Array =>
    Float32Array.from({ length: size }, () => (group.random.uniform() - 0.5) * scale)
  return {
    ...given,
    x: Array.from({ length: group.ranks }, () => encode(xType, floats(rows * n, 4))),
    residual: encode(type, floats(rows * n, 8)),
    weight: encode(type, floats(n, 3)),
    bias: given.bias ? encode(type, floats(n, 2)) : null,
  }
}

/** residual + (fixed-order sum) + bias, every step in float32, rounded once. */
function residualBytes({ x, residual, bias, xType, type, n }: Inputs, place: readonly number[]): Uint8Array {
  const sums = fixedOrder(
    x.map((raw) => decode(xType, raw)),
    place,
    'sum',
    'float32',
  )
  const before = decode(type, residual) as Float32Array
  const added = bias && (decode(type, bias) as Float32Array)
  const after = Float32Array.from(before, (value, i) => {
    const sum = Math.fround(value + sums[i]!)
    return added ? Math.fround(sum + added[i % n]!) : sum
  })
  return encode(type, after)
}

async function sharedTensor({ comm, device }: RankContext, shape: number[], dtype: DType, bytes: Uint8Array): Promise<Placed> {
  const tensor = await comm.allocate(shape, { dtype, shared: true })
  if (comm.deviceRank === 0 && bytes.byteLength > 0) device.write(tensor.storage, tensor.byteOffset, bytes)
  await comm.barrier()
  return { tensor, checkSurroundings: async () => {}, [Symbol.dispose]: () => tensor.dispose() }
}

/** One fused all-reduce; returns the bytes of the residual and of the result. */
async function fused(context: RankContext, given: Inputs, layout: Layout): Promise<{ residual: Uint8Array; out: Uint8Array }> {
  const { rows, n, xType, type, eps, zeroCentered } = given
  const shape = [rows, n]
  const { comm, device, rank } = context
  const place = (kind: Layout['out'], bytes: Uint8Array): Promise<Placed> =>
    kind === 'shared' ? sharedTensor(context, shape, type, bytes) : placed(context, kind as Layout['style'], shape, type, bytes)
  using x = await placed(context, layout.style, shape, xType, given.x[rank]!)
  using residual = await place(layout.residual, given.residual)
  using weight = Tensor.fromBytes(given.weight, [n], type, device)
  using bias = given.bias && Tensor.fromBytes(given.bias, [n], type, device)
  using to = layout.out === 'none' ? null : await place(layout.out, poison(given.residual.byteLength))
  const args = { x: x.tensor, residual: residual.tensor, weight, bias: bias ?? undefined, eps, zeroCentered, out: to?.tensor }
  const y = await comm.allReduceResidualBiasRMSNorm(args)
  expect([y.shape, y.dtype]).toEqual([shape, type])
  if (to) expect(y).toBe(to.tensor)
  const found = { residual: await residual.tensor.bytes(), out: await y.bytes() }
  expect(Buffer.compare(await x.tensor.bytes(), given.x[rank]!), 'the operand').toBe(0)
  await Promise.all([x.checkSurroundings(), residual.checkSurroundings(), to?.checkSurroundings()])
  if (!to) y.dispose()
  return found
}

function check(given: Inputs, group: Group, results: readonly { residual: Uint8Array; out: Uint8Array }[]): void {
  const { what, rows, n, type, xType, eps, zeroCentered } = given
  const wanted = residualBytes(given, group.place)
  const weight = decode(type, given.weight) as Float32Array
  const shape = { t: rows, h: n, eps, zeroCentered }
  for (const [rank, { residual, out }] of results.entries()) {
    expect(Buffer.compare(residual, wanted), `${what}: the residual of rank ${rank} differs from the fixed order`).toBe(0)
    expect(Buffer.compare(out, results[0]!.out), `${what}: ranks 0 and ${rank} differ`).toBe(0)
  }
  const found = decode(type, results[0]!.out) as Float32Array
  const stored = decode(type, wanted) as Float32Array
  reference.expectClose(found, reference.rmsNorm(stored, weight, shape), { ...TOLERANCE[type]!, what })
  // The whole formula in float64: float32 rounds every step, 16-bit residuals once more.
  const whole = reference.allReduceResidualBiasRmsNorm(
    {
      ranks: given.x.map((raw) => decode(xType, raw) as Float32Array),
      residual: decode(type, given.residual) as Float32Array,
      bias: given.bias ? (decode(type, given.bias) as Float32Array) : undefined,
      gamma: weight,
    },
    shape,
  )
  const step = type === 'float32' ? (group.ranks + 3) * 2 ** -23 : type === 'bfloat16' ? 2 ** -8 : 2 ** -11
  reference.expectClose(stored, whole.residual, { abs: step * 4 * (group.ranks + 2), rel: step, what: `${what}, residual` })
}

function fusedPairs(group: Group, brief: boolean): void {
  const factors = {
    rows: [0, 1, 3],
    n: brief ? [7, 64] : [1, 7, 64, 1000, 4096, 4097],
    xType: FLOATS,
    type: FLOATS,
    bias: [false, true],
    zeroCentered: [false, true],
    eps: [1e-6, 1e-2],
    style: STYLES,
    residual: ['shared', ...STYLES] as const,
    out: ['none', 'shared', ...STYLES] as const,
  }
  const all = group.share(factors)
  const rows = brief ? all.slice(0, 8) : all
  it(`allReduceResidualBiasRMSNorm: ${rows.length} cases`, async () => {
    const cases = rows.map((row) => {
      const options = `${row.bias ? ', bias' : ''}${row.zeroCentered ? ', zeroCentered' : ''}, eps ${row.eps}`
      const layout = `x ${row.style}, residual ${row.residual}, out ${row.out}`
      const what = `[${row.rows}, ${row.n}] ${row.xType} to ${row.type}${options}, ${layout}`
      return { ...inputs(group, { ...row, what }), layout: row }
    })
    const results = await group.each(cases, (context, one) => fused(context, one, one.layout))
    for (const [i, one] of cases.entries()) check(one, group, results[i]!)
  })
}

/** A row of 64 has the bits that it has alone; a repetition and another layout have them too. */
function fusedInvariance(group: Group): void {
  it('allReduceResidualBiasRMSNorm: a row has the same bits among 64 and alone, repeated, in any layout', async () => {
    const cases = (group.ranks <= 4 ? [7, 64, 1000] : [20]).flatMap((n) =>
      FLOATS.map((type) => {
        const whole = inputs(group, {
          rows: 64,
          n,
          xType: type,
          type,
          bias: true,
          zeroCentered: false,
          eps: 1e-6,
          what: `64 rows of ${n} ${type}`,
        })
        return { ...whole, layout: { style: 'symmetric', residual: 'shared', out: 'none' } as Layout }
      }),
    )
    await group.each(cases, async (context, one) => {
      const all = await fused(context, one, one.layout)
      const again = await fused(context, one, { style: 'separate', residual: 'narrow', out: 'narrow' })
      expect(Buffer.compare(again.residual, all.residual), 'the residual, repeated').toBe(0)
      expect(Buffer.compare(again.out, all.out), 'the result, repeated').toBe(0)
      const width = one.n * dtypeSize(one.type)
      for (const row of [0, 31, 63]) {
        const cut = (bytes: Uint8Array): Uint8Array => bytes.slice(row * width, (row + 1) * width)
        const alone = { ...one, rows: 1, x: one.x.map(cut), residual: cut(one.residual) }
        const found = await fused(context, alone, row === 31 ? { ...one.layout, style: 'narrow' } : one.layout)
        expect(Buffer.compare(found.residual, cut(all.residual)), `the residual of row ${row}`).toBe(0)
        expect(Buffer.compare(found.out, cut(all.out)), `row ${row}`).toBe(0)
      }
    })
  })
}

export function fusedCases(group: Group, brief: boolean): void {
  fusedPairs(group, brief)
  if (!brief) fusedInvariance(group)

  it('allReduceResidualBiasRMSNorm writes residual and out that lie in one tensor', async () => {
    await group.run(async ({ comm, device, rank }) => {
      using both = Tensor.zeros([4, 8], { device })
      using residual = both.narrow(0, 0, 2)
      using out = both.narrow(0, 2, 2)
      using x = Tensor.full([2, 8], rank + 1, { device })
      using weight = Tensor.full([8], 1, { device })
      await comm.allReduceResidualBiasRMSNorm({ x, residual, weight, out, eps: 0 })
      const sum = (group.ranks * (group.ranks + 1)) / 2
      const found = [...((await both.data()) as Float32Array)]
      expect(found.slice(0, 16)).toEqual(Array(16).fill(sum))
      reference.expectClose(found.slice(16), Array(16).fill(1), { rel: 1e-6 })
      await expect(comm.allReduceResidualBiasRMSNorm({ x, residual, weight, out: residual })).rejects.toMatchObject({
        code: 'ERR_ARGUMENT',
      })
    })
  })
}

// The quantising patterns: codes and scales bit by bit against float32 arithmetic on the normed rows that the device wrote.
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { AllReduceFusionPattern as P } from '../../runtime/comm/fusion/patterns.ts'
import { fp4ScaleBytes, fp4ScaleOffset, packedScaleOffset, packedScales } from '../../runtime/comm/fusion/scale-layout.ts'
import { type DType, decode, encode } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { drawn } from '../support/effort.ts'
import { Random, seed } from '../support/random.ts'
import * as reference from '../support/reference-quant.ts'

const [gpu, cpu] = [await testDevice(), await openDevice('cpu')]
afterAll(() => {
  for (const device of [gpu, cpu]) device.dispose()
})
/** What the ranks of the tests at work run on. */
let device: Device
const start = seed()
const random = new Random(start)
const FLOATS: readonly DType[] = ['bfloat16', 'float16', 'float32']

interface Rows {
  dtype: DType
  tokens: number
  hidden: number
  ranks: number
  x: Float32Array[]
  residual: Float32Array
  gamma: Float32Array | Uint8Array
}

function normalRows(dtype: DType, tokens: number, hidden: number, ranks: number): Rows {
  const x = Array.from({ length: ranks }, () => random.floats(tokens * hidden))
  return { dtype, tokens, hidden, ranks, x, residual: random.floats(tokens * hidden, 2), gamma: random.floats(hidden, 3) }
}

/** Rows of ones, so that what is quantised is gamma. */
function gammaRows(dtype: DType, gamma: Float32Array | Uint8Array, hidden: number, negative = false): Rows {
  const one = new Float32Array(hidden).fill(negative ? -1 : 1)
  return { dtype, tokens: 1, hidden, ranks: 1, x: [one], residual: new Float32Array(hidden), gamma }
}

type Options = { scaleFactor?: number; layoutCode?: 0 | 1 | 2; blockQuantGroupSize?: number }

/** Runs the pattern with and without normOut; both must write the same. Returns the normed rows, the codes and the scales. */
async function quantised(rows: Rows, patterns: readonly [0 | 2 | 3 | 8 | 10, 4 | 5 | 9 | 11], options: Options) {
  const { dtype, tokens, hidden, ranks, x, residual, gamma } = rows
  const shape = [tokens, hidden]
  const eps = gamma instanceof Uint8Array || tokens === 1 ? 0 : 1e-6
  const results = await launch({ ranks, devices: [device] }, async ({ comm, device, rank }) => {
    using input = Tensor.fromBytes(encode(dtype, x[rank]!), shape, dtype, device)
    using residualIn = Tensor.fromBytes(encode(dtype, residual), shape, dtype, device)
    const bytes = gamma instanceof Uint8Array ? gamma : encode(dtype, gamma)
    using rmsGamma = Tensor.fromBytes(bytes, [hidden], dtype, device)
    const found = []
    for (const pattern of patterns) {
      const all = await comm.allReduceFusion({ input, residualIn, rmsGamma, rmsEps: eps, pattern, ...options })
      const read = async (tensor: Tensor | undefined): Promise<Uint8Array> => (tensor ? tensor.bytes() : new Uint8Array(0))
      found.push({ norm: await read(all.normOut), codes: await read(all.quantOut), scales: await read(all.scaleOut) })
      for (const tensor of Object.values(all)) tensor?.dispose()
    }
    return found
  })
  const [plain, out] = results[0]!
  for (const [i, found] of results.entries()) {
    for (const one of found) {
      expect(Buffer.compare(one.codes, out!.codes), `codes of rank ${i}`).toBe(0)
    }
  }
  expect(plain!.norm.length).toBe(0)
  const n = decode(dtype, out!.norm) as Float32Array
  return { n, codes: out!.codes, scales: out!.scales, plainScales: plain!.scales }
}

/** The first difference, told with the value it came from. */
function same(found: ArrayLike<number>, wanted: ArrayLike<number>, n: Float32Array, per: number, what: string): void {
  expect(found.length, what).toBe(wanted.length)
  for (let i = 0; i < wanted.length; i++) {
    if (found[i] !== wanted[i]) {
      const from = [...n.subarray(i * per, i * per + Math.min(per, 16))]
      throw new Error(`${what}, seed ${start}: entry ${i} is ${found[i]}, expected ${wanted[i]}, from ${from}`)
    }
  }
}

async function checkStatic(rows: Rows, scaleFactor: number): Promise<void> {
  const { n, codes } = await quantised(rows, [P.kARResidualRMSNormFP8Quant, P.kARResidualRMSNormOutFP8Quant], { scaleFactor })
  same(codes, reference.staticFp8(n, scaleFactor), n, 1, `fp8 of ${rows.dtype} / ${scaleFactor}`)
}

async function checkRows(rows: Rows): Promise<void> {
  const { n, codes, scales, plainScales } = await quantised(
    rows,
    [P.kARResidualRMSNormDynamicFP8Quant, P.kARResidualRMSNormOutDynamicFP8Quant],
    {},
  )
  const wanted = reference.rowFp8(n, rows.hidden)
  expect(Buffer.compare(plainScales, scales)).toBe(0)
  same(scales, new Uint8Array(wanted.scales.buffer), n, rows.hidden, `row scales of ${rows.dtype}`)
  same(codes, wanted.codes, n, 1, `row fp8 of ${rows.dtype}`)
}

async function checkGroups(rows: Rows, group: number): Promise<void> {
  const patterns = [P.kARResidualRMSNormPerTokenGroupFP8PackedQuant, P.kARResidualRMSNormOutPerTokenGroupFP8PackedQuant] as const
  const { n, codes, scales } = await quantised(rows, patterns, { blockQuantGroupSize: group })
  const wanted = reference.groupFp8(n, group)
  const groups = rows.hidden / group
  const layout = packedScales(rows.tokens, groups)
  const packed = new Uint8Array(layout.length * 4)
  wanted.exponents.forEach((exponent, i) => {
    packed[packedScaleOffset(layout, Math.floor(i / groups), i % groups)] = exponent
  })
  same(scales, packed, n, 1, `group scales of ${rows.dtype}, group ${group}, ${rows.tokens} tokens`)
  same(codes, wanted.codes, n, 1, `group fp8 of ${rows.dtype}, group ${group}`)
}

async function checkBlocks(rows: Rows, scaleFactor: number, layoutCode: 0 | 1 | 2): Promise<void> {
  const patterns = [P.kARResidualRMSNormFP4Quant, P.kARResidualRMSNormOutFP4Quant] as const
  const { n, codes, scales } = await quantised(rows, patterns, { scaleFactor, layoutCode })
  const wanted = reference.blockFp4(n, scaleFactor)
  const columns = rows.hidden / 16
  expect(scales.length).toBe(fp4ScaleBytes(layoutCode, rows.tokens, columns))
  const found = wanted.scales.map((_, i) => scales[fp4ScaleOffset(layoutCode, Math.floor(i / columns), i % columns, columns)]!)
  const what = `of ${rows.dtype} x ${scaleFactor}, layout ${layoutCode}, [${rows.tokens}, ${rows.hidden}]`
  same(found, wanted.scales, n, 16, `fp4 scales ${what}`)
  same(codes, wanted.codes, n, 2, `fp4 codes ${what}`)
}

describe.each([
  ['webgpu', gpu],
  ['cpu', cpu],
] as const)('%s', (_, used) => {
  beforeAll(() => {
    device = used
  })

  describe.each(drawn(FLOATS, 2, start + used.kind.length))('%s', (dtype) => {
    it('static FP8 of 2^19 random values', async () => {
      for (const scaleFactor of [0.013, 1]) await checkStatic(normalRows(dtype, 64, 4096, 2), scaleFactor)
    })

    it('dynamic FP8 per token of 2^19 random values', async () => {
      await checkRows(normalRows(dtype, 128, 4096, 1))
    })

    it('FP8 in groups of 2^19 random values', async () => {
      await checkGroups(normalRows(dtype, 64, 4096, 1), 128)
      await checkGroups(normalRows(dtype, 64, 4096, 2), 16)
    })

    it('FP4 of 2^19 random values', async () => {
      for (const scaleFactor of [448 * 6 * 0.1, 1]) await checkBlocks(normalRows(dtype, 64, 4096, 1), scaleFactor, 0)
    })

    it('tokens 1, 3, 8, 129, hidden sizes, group sizes, layouts, ranks', async () => {
      for (const [tokens, hidden, group, ranks] of [
        [1, 16, 16, 1],
        [3, 48, 48, 2],
        [8, 1000, 5, 4],
        [129, 48, 3, 1],
        [3, 4096, 64, 4],
        [129, 240, 48, 2],
        [5, 4000, 5, 1],
      ] as const) {
        const rows = normalRows(dtype, tokens, hidden, ranks)
        await checkStatic(rows, 0.25)
        await checkRows(rows)
        await checkGroups(rows, group)
        if (hidden % 16 === 0) for (const layout of [0, 1, 2] as const) await checkBlocks(rows, 37, layout)
      }
    })
  })

  describe.each(['bfloat16', 'float16'] as const)('every %s, NaN and infinities included', (dtype) => {
    const codes = new Uint16Array(65536).map((_, i) => i)
    const all = (keep: (value: number) => boolean): Uint8Array => {
      const values = decode(dtype, new Uint8Array(codes.buffer)) as Float32Array
      const kept = [...codes].filter((code) => keep(values[code]!))
      while (kept.length % 16 !== 0) kept.push(0)
      return new Uint8Array(Uint16Array.from(kept).buffer)
    }

    it('static FP8', async () => {
      for (const scaleFactor of [1, 3, 2 ** -7])
        await checkStatic(
          gammaRows(
            dtype,
            all(() => true),
            65536,
          ),
          scaleFactor,
        )
      await checkStatic(
        gammaRows(
          dtype,
          all(() => true),
          65536,
          true,
        ),
        1,
      )
    })

    it('groups and blocks', async () => {
      const gamma = all(() => true)
      for (const group of [16, 4]) await checkGroups(gammaRows(dtype, gamma, 65536), group)
      for (const scaleFactor of [1, 2 ** -6, 2 ** 6]) await checkBlocks(gammaRows(dtype, gamma, 65536), scaleFactor, 2)
    })

    it('rows: with infinities, with NaN alone, finite', async () => {
      for (const keep of [
        () => true,
        (value: number) => !(Math.abs(value) === Number.POSITIVE_INFINITY),
        Number.isFinite,
        (v: number) => Math.abs(v) < 4,
      ]) {
        const gamma = all(keep)
        await checkRows(gammaRows(dtype, gamma, gamma.length / 2))
      }
    })
  })

  it('values beside the ties of e4m3 and e2m1 in float32', async () => {
    const values: number[] = []
    const near = (x: number): void => {
      const word = new Uint32Array(Float32Array.of(x).buffer)
      for (const step of [-1, 0, 1]) values.push(new Float32Array(Uint32Array.of(word[0]! + step).buffer)[0]!)
    }
    for (let code = 0; code < 126; code++) {
      const [a, b] = decode('float8_e4m3fn', Uint8Array.of(code, code + 1)) as Float32Array
      near((a! + b!) / 2)
    }
    for (const tie of [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 464, 448, 480]) near(tie)
    while (values.length % 16 !== 15) values.push(0)
    values.push(448)
    const hidden = values.length
    for (const sign of [1, -1]) {
      const rows = gammaRows(
        'float32',
        Float32Array.from(values, (v) => v * sign),
        hidden,
      )
      await checkStatic(rows, 1)
      await checkRows(rows)
      await checkGroups(rows, hidden)
      await checkBlocks(
        gammaRows(
          'float32',
          Float32Array.from(values, (v, i) => (i % 16 === 0 ? 6 : v * sign)),
          hidden,
        ),
        1,
        0,
      )
    }
  })

  it('row scales are the nearest float32 to absmax / 448, whatever the mantissa', async () => {
    const rows = normalRows('float32', 4096, 16, 1)
    await checkRows(rows)
  })

  it('scales have a floor: rows and groups of nothing, or nearly', async () => {
    for (const dtype of FLOATS) {
      for (const value of [0, 1e-6, 2 ** -9, 2 ** -9 * 1.0078125, 1e-7, 4.5e-8]) {
        const rows = gammaRows(dtype, new Float32Array(32).fill(value), 32)
        await checkRows(rows)
        await checkGroups(rows, 16)
        await checkBlocks(rows, 1, 2)
      }
    }
  })
})

// The fused all-reduces of CUDA ranks by kernels over peers' memory: sums bit by bit, norms against float64, codes and scales bit by bit from the
// normed rows that the kernel wrote; and nothing of it crosses the host.
import { afterAll, describe, expect, it } from 'vitest'
import type { Home } from '../../runtime/comm/cuda/reach.ts'
import { AllReduceFusionPattern as P } from '../../runtime/comm/fusion/patterns.ts'
import { fp4ScaleBytes, fp4ScaleOffset, packedScaleOffset, packedScales } from '../../runtime/comm/fusion/scale-layout.ts'
import { createAllReduceFusionWorkspace } from '../../runtime/comm/fusion/workspace.ts'
import { roundedSum } from '../../runtime/comm/staged/fused-rows.ts'
import { type DType, decode, encode } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { cudaDevices, reason } from '../support/cuda.ts'
import { fixedOrder } from '../support/fixed-order.ts'
import { Random, seed } from '../support/random.ts'
import { expectClose, rmsNorm } from '../support/reference-ops.ts'
import * as reference from '../support/reference-quant.ts'
import { type CudaRank, overPeers } from './cuda-ranks.ts'

const [a, b] = (await Promise.all(cudaDevices().map(({ open }) => open()))) as [CudaDevice, CudaDevice]
afterAll(() => {
  for (const device of [a, b]) device?.dispose()
})
const start = seed()
const random = new Random(start)
const FLOATS: readonly DType[] = ['bfloat16', 'float16', 'float32']
const GROUPS: readonly (readonly [string, readonly CudaDevice[], Home | undefined])[] = [
  ['1 rank', [a], undefined],
  ['2 ranks on two devices', [a, b], undefined],
  ['2 ranks on two devices, over pinned memory', [a, b], 'pinned'],
  // An emulated device takes long with many ranks: 8 in some runs, 3 in others.
  random.int(3) === 0
    ? ['8 ranks on one device', Array<CudaDevice>(8).fill(a), undefined]
    : ['3 ranks on one device', [a, a, a], undefined],
]
const NORM: Partial<Record<DType, { rel: number; abs: number }>> = {
  float32: { rel: 2e-6, abs: 1e-30 },
  bfloat16: { rel: 2 ** -8 + 3e-6, abs: 1e-30 },
  float16: { rel: 2 ** -11 + 3e-6, abs: 2 ** -25 },
}

interface Rows {
  dtype: DType
  tokens: number
  hidden: number
  x: Uint8Array[]
  residual: Uint8Array
  gamma: Uint8Array
}

function rowsOf(dtype: DType, tokens: number, hidden: number, ranks: number): Rows {
  const floats = (count: number, scale: number): Uint8Array => encode(dtype, random.floats(count, scale))
  const x = Array.from({ length: ranks }, () => floats(tokens * hidden, 1))
  return { dtype, tokens, hidden, x, residual: floats(tokens * hidden, 2), gamma: floats(hidden, 3) }
}

/** All ranks' sum in float32, in their order. */
function sumOf({ x, dtype }: Rows): ArrayLike<number> {
  return fixedOrder(
    x.map((bytes) => decode(dtype, bytes)),
    x.map(() => 0),
    'sum',
    'float32',
  )
}

function residualOf(rows: Rows, sum: ArrayLike<number>): Uint8Array {
  const before = decode(rows.dtype, rows.residual) as Float32Array
  return encode(
    rows.dtype,
    before.map((value, i) => Math.fround(value + sum[i]!)),
  )
}

interface Options {
  scaleFactor?: number
  layoutCode?: 0 | 1 | 2
  blockQuantGroupSize?: number
  weightBias?: number
  useOneshot?: 'auto' | boolean
  preNormGamma?: Tensor
  fp32Acc?: boolean
}

/** What one rank's call writes; by kernels alone. */
async function fused({ comm, device, rank }: CudaRank, rows: Rows, pattern: P, options: Options): Promise<Record<string, Uint8Array>> {
  const { dtype, tokens, hidden } = rows
  using input = Tensor.fromBytes(rows.x[rank]!, [tokens, hidden], dtype, device)
  using residualIn = Tensor.fromBytes(rows.residual, [tokens, hidden], dtype, device)
  using rmsGamma = Tensor.fromBytes(rows.gamma, [hidden], dtype, device)
  const norm = pattern === P.kAllReduce ? {} : { residualIn, rmsGamma, rmsEps: 1e-5 }
  const before = comm.stats().crossings
  const results = await comm.allReduceFusion({ input, pattern, ...norm, ...options })
  const found: Record<string, Uint8Array> = {}
  for (const [name, tensor] of Object.entries(results) as [string, Tensor | undefined][]) {
    if (!tensor) continue
    found[name] = await tensor.bytes()
    tensor.dispose()
  }
  expect(comm.stats().crossings, 'rounds through host memory').toBe(before)
  return found
}

/** All ranks' results, which are alike. */
async function onAll(
  devices: readonly CudaDevice[],
  memory: Home | undefined,
  body: (rank: CudaRank) => Promise<Record<string, Uint8Array>[]>,
): Promise<Record<string, Uint8Array>[]> {
  const byRank = await overPeers(devices, body, { ...(memory && { memory }) })
  for (const [rank, found] of byRank.entries()) {
    for (const [i, results] of found.entries()) {
      for (const [name, bytes] of Object.entries(results)) {
        expect(Buffer.compare(bytes, byRank[0]![i]![name]!), `call ${i}: ${name} of rank ${rank}, seed ${start}`).toBe(0)
      }
    }
  }
  return byRank[0]!
}

function same(found: ArrayLike<number>, wanted: ArrayLike<number>, what: string): void {
  expect(found.length, what).toBe(wanted.length)
  for (let i = 0; i < wanted.length; i++) {
    if (found[i] !== wanted[i]) throw new Error(`${what}, seed ${start}: entry ${i} is ${found[i]}, expected ${wanted[i]}`)
  }
}

describe.skipIf(reason !== '').each(GROUPS)(`%s${reason}`, (_, devices, memory) => {
  const over = <T>(body: (rank: CudaRank) => Promise<T>): Promise<T[]> => overPeers(devices, body, { ...(memory && { memory }) })
  const ranks = devices.length
  // An emulated device takes long with many ranks; over pinned memory the kernels are the same.
  const brief = <T>(all: readonly T[]): readonly T[] => (ranks > 4 || memory ? all.slice(0, 1) : all)

  it.each(brief(FLOATS))('%s: the sum alone, and with residual and norm, one-shot and two-shot', async (dtype) => {
    // Rows that fit in packets; that fit in one piece; that do not.
    for (const [tokens, hidden] of brief([
      [1, 64],
      [3, 1000],
      [40, 512],
    ] as const)) {
      const rows = rowsOf(dtype, tokens, hidden, ranks)
      const ways: Options[] = [{}, { useOneshot: true }, { useOneshot: false }]
      if (new Set(devices).size === 1) ways.pop()
      const results = await onAll(devices, memory, async (rank) => {
        const found = []
        for (const way of ways) {
          found.push(await fused(rank, rows, P.kAllReduce, way))
          found.push(await fused(rank, rows, P.kARResidualRMSNorm, { ...way, weightBias: 1 }))
        }
        return found
      })
      const sum = sumOf(rows)
      const residual = residualOf(rows, sum)
      const shape = { t: tokens, h: hidden, eps: 1e-5, zeroCentered: true }
      const norm = rmsNorm(decode(dtype, residual) as Float32Array, decode(dtype, rows.gamma) as Float32Array, shape)
      for (const [i, { output, residualOut, normOut }] of results.entries()) {
        const what = `[${tokens}, ${hidden}], call ${i}`
        if (i % 2 === 0) same(output!, encode(dtype, sum), `${what}: the sum`)
        else {
          same(residualOut!, residual, `${what}: the residual`)
          same(normOut!, results[1]!.normOut!, `${what}: the norm, from way to way`)
          expectClose(decode(dtype, normOut!) as Float32Array, norm, { ...NORM[dtype]!, what })
        }
      }
    }
  })

  it.each(brief(FLOATS))('%s: every quantiser', async (dtype) => {
    for (const [tokens, hidden, group] of brief([
      [1, 48, 16],
      [9, 240, 48],
      [3, 1600, 5],
    ] as const)) {
      const rows = rowsOf(dtype, tokens, hidden, ranks)
      const scaleFactor = 0.37
      const calls: [plain: P, out: P, Options][] = [
        [P.kARResidualRMSNormFP8Quant, P.kARResidualRMSNormOutFP8Quant, { scaleFactor }],
        [P.kARResidualRMSNormDynamicFP8Quant, P.kARResidualRMSNormOutDynamicFP8Quant, {}],
        [
          P.kARResidualRMSNormPerTokenGroupFP8PackedQuant,
          P.kARResidualRMSNormOutPerTokenGroupFP8PackedQuant,
          { blockQuantGroupSize: group },
        ],
        ...([0, 1, 2] as const).map((layoutCode): [P, P, Options] => [
          P.kARResidualRMSNormFP4Quant,
          P.kARResidualRMSNormOutFP4Quant,
          { scaleFactor: 37, layoutCode },
        ]),
      ]
      const results = await onAll(devices, memory, async (rank) => {
        const found = []
        for (const [plain, out, options] of calls)
          found.push(await fused(rank, rows, plain, options), await fused(rank, rows, out, options))
        return found
      })
      const residual = residualOf(rows, sumOf(rows))
      for (const [i, [, , { blockQuantGroupSize, layoutCode }]] of calls.entries()) {
        const [plain, out] = [results[2 * i]!, results[2 * i + 1]!]
        const what = `${dtype} [${tokens}, ${hidden}], quantiser ${i}`
        same(plain.residualOut!, residual, `${what}: the residual`)
        expect(plain.normOut).toBeUndefined()
        for (const name of ['residualOut', 'quantOut', 'scaleOut']) {
          if (out[name]) same(plain[name]!, out[name], `${what}: ${name} without the norm`)
        }
        const n = decode(dtype, out.normOut!) as Float32Array
        if (i === 0) same(out.quantOut!, reference.staticFp8(n, scaleFactor), what)
        if (i === 1) {
          const wanted = reference.rowFp8(n, hidden)
          same(out.quantOut!, wanted.codes, what)
          same(out.scaleOut!, new Uint8Array(wanted.scales.buffer), `${what}: scales`)
        }
        if (i === 2) {
          const wanted = reference.groupFp8(n, blockQuantGroupSize!)
          const groups = hidden / blockQuantGroupSize!
          const layout = packedScales(tokens, groups)
          const packed = new Uint8Array(layout.length * 4)
          wanted.exponents.forEach((exponent, j) => {
            packed[packedScaleOffset(layout, Math.floor(j / groups), j % groups)] = exponent
          })
          same(out.quantOut!, wanted.codes, what)
          same(out.scaleOut!, packed, `${what}: scales`)
        }
        if (i > 2) {
          const wanted = reference.blockFp4(n, 37)
          const columns = hidden / 16
          const scales = new Uint8Array(fp4ScaleBytes(layoutCode!, tokens, columns))
          wanted.scales.forEach((scale, j) => {
            scales[fp4ScaleOffset(layoutCode!, Math.floor(j / columns), j % columns, columns)] = scale
          })
          same(out.quantOut!, wanted.codes, what)
          same(out.scaleOut!, scales, `${what}: scales, zero where no block is`)
        }
      }
    }
  })

  it('results go to the places that ranks name, and to workspaces; what belongs to no block stays there as it was', async () => {
    const [tokens, hidden] = [3, 48]
    const rows = rowsOf('bfloat16', tokens, hidden, ranks)
    await over(async ({ comm, device, rank }) => {
      using input = Tensor.fromBytes(rows.x[rank]!, [tokens, hidden], 'bfloat16', device)
      using residual = Tensor.fromBytes(rows.residual, [tokens, hidden], 'bfloat16', device)
      using rmsGamma = Tensor.fromBytes(rows.gamma, [hidden], 'bfloat16', device)
      const bytes = fp4ScaleBytes(0, tokens, 3)
      using scaleOut = Tensor.fromBytes(new Uint8Array(bytes).fill(0xad), [bytes], 'uint8', device)
      const pattern = P.kARResidualRMSNormOutFP4Quant
      const plain = await comm.allReduceFusion({ input, residualIn: residual, rmsGamma, pattern, scaleFactor: 3 })
      const named = { residualOut: residual, normOut: input, scaleOut }
      const found = await comm.allReduceFusion({ input, residualIn: residual, rmsGamma, pattern, scaleFactor: 3, ...named })
      expect([found.residualOut, found.normOut, found.scaleOut]).toEqual([residual, input, scaleOut])
      for (const name of ['residualOut', 'normOut', 'quantOut'] as const) {
        expect(Buffer.compare(await found[name]!.bytes(), await plain[name]!.bytes()), name).toBe(0)
      }
      const [kept, fresh] = [await scaleOut.bytes(), await plain.scaleOut!.bytes()]
      const own = new Set([0, 1, 2].flatMap((row) => [0, 1, 2].map((column) => fp4ScaleOffset(0, row, column, 3))))
      for (let i = 0; i < bytes; i++) expect(kept[i], `scale byte ${i}`).toBe(own.has(i) ? fresh[i] : 0xad)
      using workspace = await createAllReduceFusionWorkspace({ comm, maxTokenNum: 8, hiddenDim: hidden, dtype: 'bfloat16' })
      using x = Tensor.fromBytes(rows.x[rank]!, [tokens, hidden], 'bfloat16', device)
      using residualIn = Tensor.fromBytes(rows.residual, [tokens, hidden], 'bfloat16', device)
      const first = await comm.allReduceFusion({ input: x, residualIn, rmsGamma, pattern, scaleFactor: 3, workspace })
      const again = await comm.allReduceFusion({ input: x, residualIn, rmsGamma, pattern, scaleFactor: 3, workspace })
      expect(again.normOut!.storage).toBe(first.normOut!.storage)
      expect(Buffer.compare(await again.quantOut!.bytes(), await plain.quantOut!.bytes())).toBe(0)
    })
  })

  it.each(brief(FLOATS))('%s: experts, with and without an index, and the sum as well', async (dtype) => {
    // Small integers: every order of sums gives the same.
    const whole = (count: number): Float32Array => Float32Array.from({ length: count }, () => random.int(5) - 2)
    for (const [tokens, hidden, k, permuted] of brief([
      [1, 64, 4, 9],
      [30, 400, 3, 50],
    ] as const)) {
      const size = tokens * hidden
      const given = devices.map(() => ({
        scale: whole(k * tokens),
        dense: whole(k * size),
        rows: whole(permuted * hidden),
        shared: whole(size),
        index: Int32Array.from({ length: tokens * k }, () => random.int(permuted + 3) - 3),
      }))
      const before = whole(size)
      const sums = [new Float32Array(size), new Float32Array(size)] as const
      for (const { scale, dense, rows, shared, index } of given) {
        for (let i = 0; i < size; i++) {
          const token = Math.floor(i / hidden)
          sums[0][i]! += shared[i]!
          sums[1][i]! += shared[i]!
          for (let j = 0; j < k; j++) {
            sums[0][i]! += dense[j * size + i]! * scale[j * tokens + token]!
            const row = index[token * k + j]!
            if (row >= 0) sums[1][i]! += 2 * rows[row * hidden + (i % hidden)]! * scale[token * k + j]!
          }
        }
      }
      await over(async ({ comm, device, rank }) => {
        const { scale, dense, rows, shared, index } = given[rank]!
        const made: Tensor[] = []
        const tensor = (data: Float32Array | Int32Array, shape: number[], of: DType): Tensor => {
          const one = Tensor.from(data, { shape, dtype: of, device })
          made.push(one)
          return one
        }
        const common = { residualIn: tensor(before, [tokens, hidden], dtype), rmsGamma: tensor(whole(hidden).fill(1), [hidden], dtype) }
        const crossings = comm.stats().crossings
        const output = tensor(new Float32Array(size), [tokens, hidden], dtype)
        const joined = await comm.moeAllReduceFusion({
          moeReductionScaleInput: tensor(scale, [k, tokens], 'float32'),
          moeReductionActiveExpertsTokenInput: tensor(dense, [k * tokens, hidden], dtype),
          moeReductionTokenInput: tensor(shared, [tokens, hidden], dtype),
          output,
          scaleFactor: 2,
          ...common,
        })
        const finalized = await comm.moeFinalizeAllReduceFusion({
          input: tensor(rows, [permuted, hidden], dtype),
          expandedIdxToPermutedIdx: tensor(index, [tokens, k], 'int32'),
          expertScaleFactor: tensor(scale, [tokens, k], dtype),
          sharedExpertOutput: tensor(shared, [tokens, hidden], dtype),
          routedScalingFactor: 2,
          ...common,
        })
        const data = async (one: Tensor | undefined): Promise<Float32Array> => (await one!.data()) as Float32Array
        same(await data(joined.output), sums[0], 'the sum of experts')
        for (const [i, found] of [joined, finalized].entries()) {
          const residual = sums[i]!.map((value, j) => value + before[j]!)
          same(await data(found.residualOut), residual, `the residual, form ${i}`)
          const shape = { t: tokens, h: hidden, eps: 1e-6, zeroCentered: false }
          const norm = rmsNorm(residual, new Float32Array(hidden).fill(1), shape)
          expectClose(await data(found.normOut), norm, { ...NORM[dtype]!, what: `the norm, form ${i}` })
        }
        const wanted = reference.blockFp4(await data(joined.normOut), 2)
        same(await joined.quantOut!.bytes(), wanted.codes, 'fp4 codes')
        expect(comm.stats().crossings, 'rounds through host memory').toBe(crossings)
        for (const one of made) one.dispose()
      })
    }
  })

  it.each(brief(FLOATS))('%s: a norm before the residual, and sums that are rounded', async (dtype) => {
    for (const [tokens, hidden] of brief([
      [3, 1000],
      [40, 512],
    ] as const)) {
      const rows = rowsOf(dtype, tokens, hidden, ranks)
      const preGamma = encode(dtype, random.floats(hidden, 2))
      const results = await onAll(devices, memory, async (rank) => {
        using preNormGamma = Tensor.fromBytes(preGamma, [hidden], dtype, rank.device)
        const found = []
        for (const options of [{ preNormGamma }, { fp32Acc: false }, { preNormGamma, fp32Acc: false }]) {
          found.push(await fused(rank, rows, P.kARResidualRMSNormOutDynamicFP8Quant, options))
        }
        return [...found, await fused(rank, rows, P.kAllReduce, { fp32Acc: false })]
      })
      const stepwise = roundedSum(rows.x, dtype, dtype)
      const gamma = decode(dtype, preGamma) as Float32Array
      const shape = { t: tokens, h: hidden, eps: 1e-5, zeroCentered: false }
      for (const [i, sum] of [sumOf(rows) as Float32Array, stepwise, stepwise].entries()) {
        const found = decode(dtype, results[i]!.residualOut!) as Float32Array
        const what = `${dtype} [${tokens}, ${hidden}], form ${i}`
        if (i === 1) same(results[i]!.residualOut!, residualOf(rows, sum), `${what}: the residual`)
        else {
          const normed = decode(dtype, encode(dtype, rmsNorm(sum, gamma, shape))) as Float32Array
          const before = decode(dtype, rows.residual) as Float32Array
          const { rel, abs } = NORM[dtype]!
          // Each of the two is rounded, by less than this.
          for (const [j, value] of found.entries()) {
            const wanted = before[j]! + normed[j]!
            const room = 2 * (rel * (Math.abs(normed[j]!) + Math.abs(wanted)) + abs)
            if (!(Math.abs(value - wanted) <= room))
              throw new Error(`${what}, seed ${start}: residual ${j} is ${value}, expected ${wanted}`)
          }
        }
        const norm = rmsNorm(found, decode(dtype, rows.gamma) as Float32Array, shape)
        expectClose(decode(dtype, results[i]!.normOut!) as Float32Array, norm, { ...NORM[dtype]!, what })
        const codes = reference.rowFp8(decode(dtype, results[i]!.normOut!) as Float32Array, hidden)
        same(results[i]!.quantOut!, codes.codes, `${what}: codes`)
      }
      same(results[3]!.output!, encode(dtype, stepwise), `${dtype}: the rounded sum`)
    }
  })

  it('what the kernels do not know goes through the host: partials of another type', async () => {
    const rows = rowsOf('bfloat16', 2, 64, ranks)
    await over(async ({ comm, device, rank }) => {
      using wide = Tensor.from(decode('bfloat16', rows.x[rank]!) as Float32Array, { shape: [2, 64], device })
      using residualIn = Tensor.fromBytes(rows.residual, [2, 64], 'bfloat16', device)
      using rmsGamma = Tensor.fromBytes(rows.gamma, [64], 'bfloat16', device)
      const crossings = comm.stats().crossings
      const { residualOut } = await comm.allReduceFusion({ input: wide, residualIn, rmsGamma, pattern: P.kARResidualRMSNorm })
      same(await residualOut!.bytes(), residualOf(rows, sumOf(rows)), 'the residual')
      expect(comm.stats().crossings - crossings).toBe(1)
    })
  })
})

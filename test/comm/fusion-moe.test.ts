// The fused all-reduces of mixture-of-experts layers: small integers exactly, random values to rounding, skipped slots, refusals.
import { afterAll, describe, expect, it } from 'vitest'
import { AllReduceFusionPattern as P } from '../../runtime/comm/fusion/patterns.ts'
import { type DType, decode, encode } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'
import { expectClose } from '../support/reference-ops.ts'

const [a, b, cpu] = [await testDevice(), await testDevice(), await openDevice('cpu')]
afterAll(() => {
  for (const device of [a, b, cpu]) device.dispose()
})
const random = new Random(seed())
const FLOATS: readonly DType[] = ['bfloat16', 'float16', 'float32']
const GROUPS: readonly (readonly [number, string, readonly Device[]])[] = [
  [1, 'webgpu', [a]],
  [2, 'webgpu', [a]],
  [4, 'webgpu', [a]],
  [2, 'two webgpu devices', [a, b]],
  [1, 'cpu', [cpu]],
  [3, 'cpu', [cpu]],
  [2, 'webgpu and cpu', [a, cpu]],
  [3, 'webgpu, webgpu and cpu', [a, a, cpu]],
]

function rounded(values: ArrayLike<number>, dtype: DType): Float32Array {
  return decode(dtype, encode(dtype, values)) as Float32Array
}

/** Small integers, or normal values as the dtype holds them. */
function numbers(count: number, dtype: DType, whole: boolean): Float32Array {
  return whole ? Float32Array.from({ length: count }, () => random.int(5) - 2) : rounded(random.floats(count), dtype)
}

/** Rounded to the dtype once a rank and once for the residual. */
function tolerance(dtype: DType, ranks: number): { rel: number; abs: number } {
  const step = dtype === 'float32' ? 2 ** -21 : dtype === 'bfloat16' ? 2 ** -7 : 2 ** -10
  return { rel: step, abs: step * 8 * ranks }
}

describe.each(GROUPS)('%i ranks on %s', (ranks, _, used) => {
  it.each(FLOATS)('%s: experts of every token, scaled, and the shared expert', async (dtype) => {
    for (const [tokens, hidden, experts, whole] of [
      [3, 64, 4, true],
      [5, 48, 7, false],
    ] as const) {
      const size = tokens * hidden
      const scales = Array.from({ length: ranks }, () => numbers(experts * tokens, 'float32', whole))
      const rows = Array.from({ length: ranks }, () => numbers(experts * size, dtype, whole))
      const shared = Array.from({ length: ranks }, () => numbers(size, dtype, whole))
      const before = numbers(size, dtype, whole)
      const sum = new Float64Array(size)
      for (let r = 0; r < ranks; r++) {
        for (let i = 0; i < size; i++) {
          sum[i] = sum[i]! + shared[r]![i]!
          for (let e = 0; e < experts; e++) sum[i] = sum[i]! + rows[r]![e * size + i]! * scales[r]![e * tokens + Math.floor(i / hidden)]!
        }
      }
      await launch({ ranks, devices: used }, async ({ comm, device, rank }) => {
        using scale = Tensor.from(scales[rank]!, { shape: [experts, tokens], device })
        using active = Tensor.from(rows[rank]!, { shape: [experts * tokens, hidden], dtype, device })
        using token = Tensor.from(shared[rank]!, { shape: [tokens, hidden], dtype, device })
        using residualIn = Tensor.from(before, { shape: [tokens, hidden], dtype, device })
        using rmsGamma = Tensor.full([hidden], 1, { dtype, device })
        using output = Tensor.empty([tokens, hidden], { dtype, device })
        const found = await comm.moeAllReduceFusion({
          moeReductionScaleInput: scale,
          moeReductionActiveExpertsTokenInput: active,
          moeReductionTokenInput: token,
          residualIn,
          rmsGamma,
          output,
          scaleFactor: 2,
        })
        const wanted = Float64Array.from(sum, (value, i) => value + before[i]!)
        const exact = whole ? { rel: 0, abs: 0 } : tolerance(dtype, ranks)
        expectClose((await found.output!.data()) as Float32Array, sum, { ...exact, what: 'the sum' })
        expectClose((await found.residualOut!.data()) as Float32Array, wanted, { ...exact, what: 'the residual' })
        // From the same sum, the pattern without experts writes the same norm and codes.
        if (whole) {
          using input = Tensor.from(
            Float32Array.from(sum, (v) => (rank === 0 ? v : 0)),
            { shape: [tokens, hidden], dtype, device },
          )
          const pattern = P.kARResidualRMSNormOutFP4Quant
          const plain = await comm.allReduceFusion({ input, pattern, residualIn, rmsGamma, scaleFactor: 2 })
          for (const name of ['normOut', 'quantOut'] as const) {
            expect(await found[name]!.bytes(), name).toEqual(await plain[name]!.bytes())
          }
        }
      })
    }
  })

  it.each(FLOATS)('%s: permuted rows, skipped slots, routed scaling once', async (dtype) => {
    for (const [withScale, withShared, routed, whole] of [
      [true, true, 2, true],
      [false, false, 1, true],
      [true, true, 2.5, false],
    ] as const) {
      const [tokens, hidden, k, permuted] = [6, 48, 3, 20]
      const size = tokens * hidden
      const rows = Array.from({ length: ranks }, () => numbers(permuted * hidden, dtype, whole))
      const shared = Array.from({ length: ranks }, () => numbers(size, dtype, whole))
      const scales = numbers(tokens * k, dtype, whole)
      const indices = Array.from({ length: ranks }, () =>
        Int32Array.from({ length: tokens * k }, () => random.int(permuted + 5) - 5).map((i) => Math.max(i, -1)),
      )
      const before = numbers(size, dtype, whole)
      const wanted = Float64Array.from(before)
      for (let r = 0; r < ranks; r++) {
        for (let i = 0; i < size; i++) {
          const t = Math.floor(i / hidden)
          for (let j = t * k; j < t * k + k; j++) {
            const row = indices[r]![j]!
            if (row >= 0) wanted[i] = wanted[i]! + rows[r]![row * hidden + (i % hidden)]! * (withScale ? scales[j]! : 1) * routed
          }
          if (withShared) wanted[i] = wanted[i]! + shared[r]![i]!
        }
      }
      await launch({ ranks, devices: used }, async ({ comm, device, rank }) => {
        using input = Tensor.from(rows[rank]!, { shape: [permuted, hidden], dtype, device })
        using expandedIdxToPermutedIdx = Tensor.from(indices[rank]!, { shape: [tokens, k], device })
        using expertScaleFactor = Tensor.from(scales, { shape: [tokens, k], dtype, device })
        using sharedExpertOutput = Tensor.from(shared[rank]!, { shape: [tokens, hidden], dtype, device })
        using residualIn = Tensor.from(before, { shape: [tokens, hidden], dtype, device })
        using rmsGamma = Tensor.full([hidden], 1, { dtype, device })
        const found = await comm.moeFinalizeAllReduceFusion({
          input,
          expandedIdxToPermutedIdx,
          expertScaleFactor: withScale ? expertScaleFactor : undefined,
          sharedExpertOutput: withShared ? sharedExpertOutput : undefined,
          routedScalingFactor: routed,
          residualIn,
          rmsGamma,
          rmsEps: 1e-5,
        })
        const exact = whole ? { rel: 0, abs: 0 } : { rel: tolerance(dtype, ranks).rel, abs: 2 * tolerance(dtype, ranks).abs }
        expectClose((await found.residualOut!.data()) as Float32Array, wanted, { ...exact, what: 'the residual' })
        const stored = (await found.residualOut!.data()) as Float32Array
        const norm = stored.map((value, i) => {
          const row = stored.subarray(i - (i % hidden), i - (i % hidden) + hidden)
          return value / Math.sqrt(row.reduce((total, v) => total + v * v, 0) / hidden + 1e-5)
        })
        expectClose((await found.normOut!.data()) as Float32Array, norm, { ...tolerance(dtype, 1), what: 'the norm' })
        expect([found.output, found.quantOut, found.scaleOut]).toEqual([undefined, undefined, undefined])
      })
    }
  })
})

it.each([
  ['webgpu', a],
  ['cpu', cpu],
] as const)('%s refuses what does not fit together', async (_, only) => {
  await launch({ ranks: 1, devices: [only] }, async ({ comm, device }) => {
    using input = Tensor.zeros([8, 32], { device })
    using residualIn = Tensor.zeros([4, 32], { device })
    using rmsGamma = Tensor.zeros([32], { device })
    using index = Tensor.zeros([4, 2], { dtype: 'int32', device })
    const good = { input, residualIn, rmsGamma, expandedIdxToPermutedIdx: index }
    const bad = { ...good, routedScalingFactor: Number.NaN }
    await expect(comm.moeFinalizeAllReduceFusion(bad)).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    const wrong = { ...good, expandedIdxToPermutedIdx: input }
    await expect(comm.moeFinalizeAllReduceFusion(wrong)).rejects.toMatchObject({ code: 'ERR_DTYPE' })
    await expect(comm.moeFinalizeAllReduceFusion({ ...good, output: residualIn })).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    const rows = { moeReductionActiveExpertsTokenInput: input, moeReductionTokenInput: residualIn, residualIn, rmsGamma }
    using scales = Tensor.zeros([3, 4], { device })
    await expect(comm.moeAllReduceFusion({ ...rows, moeReductionScaleInput: scales })).rejects.toMatchObject({ code: 'ERR_SHAPE' })
  })
})

// allReduceFusion: the sum and the norm against the fused norm and float32 arithmetic, places of results, the workspace, and refusals.
import { afterAll, describe, expect, it } from 'vitest'
import type { AllReduceFusion, FusionResult } from '../../runtime/comm/fusion/options.ts'
import { AllReduceFusionPattern as P } from '../../runtime/comm/fusion/patterns.ts'
import { createAllReduceFusionWorkspace } from '../../runtime/comm/fusion/workspace.ts'
import { type DType, decode, encode } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { Random, seed } from '../support/random.ts'
import { allReduceResidualBiasRmsNorm, expectClose } from '../support/reference-ops.ts'

const [a, b] = [await testDevice(), await testDevice()]
const cpu = (await openDevice('cpu')) as CpuDevice
const loops = CpuDevice.open(null)
const live = (): number => a.gpu.pool.liveBuffers + b.gpu.pool.liveBuffers + cpu.memory.liveBlocks + loops.memory.liveBlocks
afterAll(() => {
  for (const device of [a, b, cpu, loops]) device.dispose()
})
const random = new Random(seed())
const FLOATS: readonly DType[] = ['bfloat16', 'float16', 'float32']

function dispose(result: FusionResult): void {
  for (const tensor of Object.values(result)) tensor?.dispose()
}

function rounded(values: ArrayLike<number>, dtype: DType): Float32Array {
  return decode(dtype, encode(dtype, values)) as Float32Array
}

const GROUPS: readonly (readonly [string, number, readonly Device[]])[] = [
  ['1 rank', 1, [a]],
  ['2 ranks of a device', 2, [a]],
  ['4 ranks of a device', 4, [a]],
  ['2 ranks, 2 devices', 2, [a, b]],
  ['4 ranks, 2 devices', 4, [a, b]],
  ['1 cpu rank', 1, [cpu]],
  ['2 cpu ranks', 2, [cpu]],
  ['3 cpu ranks without the addon', 3, [loops]],
  ['webgpu and cpu', 2, [a, cpu]],
  ['two on webgpu, one on cpu', 3, [a, a, cpu]],
]

describe.each(GROUPS)('%s', (_, ranks, used) => {
  it.each(FLOATS)('%s: pattern 1 has the bits of allReduceResidualBiasRMSNorm, pattern 0 those of allReduce', async (dtype) => {
    for (const [tokens, hidden] of [
      [1, 16],
      [3, 48],
      [8, 1000],
      [129, 64],
      [3, 4096],
    ] as const) {
      const shape = [tokens, hidden]
      const x = Array.from({ length: ranks }, () => random.floats(tokens * hidden))
      const [before, gamma] = [random.floats(tokens * hidden), random.floats(hidden)]
      await launch({ ranks, devices: used }, async ({ comm, device, rank }) => {
        using input = Tensor.from(x[rank]!, { dtype, shape, device })
        using residual = Tensor.from(before, { dtype, shape, device })
        using residualIn = Tensor.from(before, { dtype, shape, device })
        using rmsGamma = Tensor.from(gamma, { dtype, device })
        const found = await comm.allReduceFusion({ input, residualIn, rmsGamma, pattern: P.kARResidualRMSNorm })
        using norm = await comm.allReduceResidualBiasRMSNorm({ x: input, residual, weight: rmsGamma })
        expect(await found.normOut!.bytes()).toEqual(await norm.bytes())
        expect(await found.residualOut!.bytes()).toEqual(await residual.bytes())
        expect([found.output, found.quantOut, found.scaleOut]).toEqual([undefined, undefined, undefined])
        expect(await residualIn.bytes(), 'the residual as it was').toEqual(encode(dtype, before))
        const sum = await comm.allReduceFusion({ input, pattern: P.kAllReduce })
        using wanted = await comm.allReduce(input)
        expect(await sum.output!.bytes()).toEqual(await wanted.bytes())
        dispose(found)
        dispose(sum)
      })
    }
  })

  it.each(FLOATS)('%s: fp32Acc false rounds every partial sum', async (dtype) => {
    const [tokens, hidden] = [5, 64]
    const x = Array.from({ length: ranks }, () => rounded(random.floats(tokens * hidden), dtype))
    const before = rounded(random.floats(tokens * hidden), dtype)
    let sum = x[0]!
    for (const part of x.slice(1))
      sum = rounded(
        sum.map((value, i) => Math.fround(value + part[i]!)),
        dtype,
      )
    const residual = rounded(
      before.map((value, i) => Math.fround(value + sum[i]!)),
      dtype,
    )
    await launch({ ranks, devices: used }, async ({ comm, device, rank }) => {
      using input = Tensor.from(x[rank]!, { dtype, shape: [tokens, hidden], device })
      using residualIn = Tensor.from(before, { dtype, shape: [tokens, hidden], device })
      using rmsGamma = Tensor.full([hidden], 1, { dtype, device })
      const plain = await comm.allReduceFusion({ input, pattern: P.kAllReduce, fp32Acc: false })
      expect(await plain.output!.data()).toEqual(sum)
      const normed = await comm.allReduceFusion({ input, residualIn, rmsGamma, pattern: P.kARResidualRMSNorm, fp32Acc: false })
      expect(await normed.residualOut!.data()).toEqual(residual)
      dispose(plain)
      dispose(normed)
    })
  })

  it('writes where it is told: own places, places of all, in place of the residual', async () => {
    const [tokens, hidden] = [3, 32]
    const x = random.floats(tokens * hidden)
    await launch({ ranks, devices: used }, async ({ comm, device }) => {
      const shape = [tokens, hidden]
      using input = Tensor.from(x, { shape, device })
      using residualIn = Tensor.from(x, { shape, device })
      using rmsGamma = Tensor.full([hidden], 1, { device })
      using normOut = await comm.allocate(shape, { shared: true })

      const pattern = P.kARResidualRMSNormOutFP8Quant
      const codes = Tensor.empty(shape, { dtype: 'float8_e4m3fn', device })
      const args: AllReduceFusion = {
        input,
        residualIn,
        rmsGamma,
        pattern,
        scaleFactor: 1,
        normOut,
        residualOut: residualIn,
        quantOut: codes,
      }
      const apart = await comm.allReduceFusion({ ...args, residualOut: undefined, normOut: undefined, quantOut: undefined })
      const found = await comm.allReduceFusion(args)
      expect([found.normOut, found.residualOut, found.quantOut]).toEqual([normOut, residualIn, codes])
      for (const name of ['normOut', 'residualOut', 'quantOut'] as const) {
        expect(await found[name]!.bytes(), name).toEqual(await apart[name]!.bytes())
      }

      codes.dispose()
      dispose(apart)
    })
  })

  it('uses the memory of its workspace again, whatever the number of tokens', async () => {
    const [most, hidden] = [40, 64]
    const counts = new Set<number>()
    const before = live()
    await launch({ ranks, devices: used }, async ({ comm, device, rank }) => {
      const workspace = await createAllReduceFusionWorkspace({ comm, maxTokenNum: most, hiddenDim: hidden, dtype: 'bfloat16' })
      const { metadata } = workspace
      expect([workspace.backend, metadata.tpRank, metadata.tpSize, metadata.useFp32Lamport]).toEqual([device.kind, rank, ranks, false])
      using rmsGamma = Tensor.full([hidden], 1, { dtype: 'bfloat16', device })
      using residuals = Tensor.zeros([most, hidden], { dtype: 'bfloat16', device })
      for (const tokens of [7, 40, 1, 13, 40, 39]) {
        using input = workspace.input(tokens)
        input.set(new Float32Array(tokens * hidden).fill(rank + tokens))
        using residualIn = residuals.narrow(0, 0, tokens)
        const pattern = P.kARResidualRMSNormOutFP4Quant
        const found = await comm.allReduceFusion({ input, workspace, residualIn, rmsGamma, pattern, scaleFactor: 1 })
        const sum = tokens * ranks + (ranks * (ranks - 1)) / 2
        expect(new Set((await found.residualOut!.data()) as Float32Array)).toEqual(new Set(rounded([sum], 'bfloat16')))
        dispose(found)
        await device.sync()
        await comm.barrier()
        counts.add(live())
        await comm.barrier()
      }
      const call = { tpSize: ranks, numTokens: most, hiddenDim: hidden, dtype: 'bfloat16' as DType }
      expect(workspace.isBufferSizeSufficient(call)).toBe(true)
      expect(workspace.isBufferSizeSufficient({ ...call, numTokens: most / 2, hiddenDim: 2 * hidden })).toBe(true)
      for (const wrong of [{ numTokens: most + 1 }, { tpSize: ranks + 1 }, { dtype: 'float32' as DType }]) {
        expect(workspace.isBufferSizeSufficient({ ...call, ...wrong })).toBe(false)
      }
      using wide = Tensor.zeros([most + 1, hidden], { device })
      const refused = comm.allReduceFusion({ input: wide, pattern: P.kAllReduce, workspace })
      await expect(refused).rejects.toThrow(/holds 40 tokens of 64, not 41 of 64; .*16-bit floats, not float32/)
      workspace.destroy()
      workspace.destroy()
      expect(workspace.isBufferSizeSufficient(call)).toBe(false)
    })
    expect(counts.size, `${[...counts]}`).toBe(1)
    expect(live()).toBe(before)
  })
})

/** A device of each kind for two ranks. */
const TWO: readonly (readonly [string, readonly Device[]])[] = [
  ['webgpu', [a]],
  ['cpu', [cpu]],
  ['webgpu and cpu', [a, cpu]],
]

it.each(TWO)('weightBias, eps and the norm before the residual, against float64: %s', async (_, used) => {
  const shape = { t: 9, h: 1000, eps: 1e-3, zeroCentered: true }
  const x = [random.floats(9000), random.floats(9000)]
  const [residual, gamma] = [random.floats(9000), random.floats(1000)]
  const wanted = allReduceResidualBiasRmsNorm({ ranks: x, residual, bias: undefined, gamma }, shape)
  await launch({ ranks: 2, devices: used }, async ({ comm, device, rank }) => {
    using input = Tensor.from(x[rank]!, { shape: [9, 1000], device })
    using residualIn = Tensor.from(residual, { shape: [9, 1000], device })
    using rmsGamma = Tensor.from(gamma, { device })
    const args = { input, residualIn, rmsGamma, rmsEps: 1e-3, weightBias: 1, pattern: P.kARResidualRMSNorm } as const
    const found = await comm.allReduceFusion(args)
    expectClose((await found.normOut!.data()) as Float32Array, wanted.out, { rel: 1e-5, abs: 1e-5, what: 'weightBias 1' })
    using preNormGamma = Tensor.from(gamma, { device })
    const pre = await comm.allReduceFusion({ ...args, preNormGamma })
    const h = new Float64Array(9000)
    for (let t = 0; t < 9; t++) {
      const s = Float64Array.from({ length: 1000 }, (_, i) => x[0]![t * 1000 + i]! + x[1]![t * 1000 + i]!)
      const scale = 1 / Math.sqrt(s.reduce((sum, v) => sum + v * v, 0) / 1000 + 1e-3)
      s.forEach((v, i) => {
        h[t * 1000 + i] = v * scale * gamma[i]! + residual[t * 1000 + i]!
      })
    }
    expectClose((await pre.residualOut!.data()) as Float32Array, h, { rel: 1e-5, abs: 1e-5, what: 'pre-norm' })
    dispose(found)
    dispose(pre)
  })
})

const WAYS: readonly (readonly [string, readonly Device[]])[] = [...TWO, ['two on webgpu', [a, b]]]

it.each(WAYS)('useOneshot changes no bit: %s', async (_, used) => {
  const [x, stream] = [random.floats(4 * 512), random.floats(4 * 512)]
  const run = (used: readonly Device[], pattern: number, dtype: DType, useOneshot: boolean | 'auto', fp32Acc = true): Promise<string[]> =>
    launch({ ranks: 4, devices: used }, async ({ rank, comm, device }) => {
      const make = (data: Float32Array, shape: number[]): Tensor => Tensor.from(data, { shape, dtype, device })
      const residualIn = make(stream, [4, 512])
      const rmsGamma = Tensor.full([512], 1.5, { dtype, device })
      const input = make(
        x.map((value) => value * (rank + 1)),
        [4, 512],
      )
      const found = await comm.allReduceFusion({
        ...{ input, pattern: pattern as 0, useOneshot, fp32Acc, scaleFactor: 0.5, layoutCode: 2 },
        ...(pattern > 0 && { residualIn, rmsGamma }),
        ...((pattern === 8 || pattern === 9) && { blockQuantGroupSize: 128 }),
      })
      const bits = await Promise.all(
        Object.entries(found)
          .filter(([, tensor]) => tensor)
          .map(async ([name, tensor]) => `${name} ${Buffer.from(await (tensor as Tensor).bytes()).toString('hex')}`),
      )
      return bits.sort().join()
    })
  for (const dtype of ['float32', 'bfloat16'] as const) {
    for (const pattern of [0, 1, 4, 5, 9, 11]) {
      const results = await Promise.all([
        run(used, pattern, dtype, 'auto'),
        run(used, pattern, dtype, true),
        run(used, pattern, dtype, false),
      ])
      expect(new Set(results.flat()).size, `pattern ${pattern}, ${dtype}`).toBe(1)
    }
  }
  if (used.length === 1) return
  await expect(run(used, 1, 'bfloat16', false, false)).rejects.toMatchObject({
    code: 'ERR_ARGUMENT',
    message: expect.stringContaining('fp32Acc'),
  })
})

describe.each([
  ['webgpu', a],
  ['cpu', cpu],
] as const)('%s refuses', (_, only) => {
  const refusal = (change: (args: AllReduceFusion, context: RankContext) => object): Promise<unknown> =>
    launch({ ranks: 1, devices: [only] }, async (context) => {
      const { comm, device } = context
      const input = Tensor.zeros([2, 32], { device })
      const args: AllReduceFusion = { input, residualIn: input, rmsGamma: Tensor.zeros([32], { device }), pattern: 1 }
      await comm.allReduceFusion({ ...args, ...change(args, context) })
    })
  const CASES: readonly (readonly [string, string, RegExp, (args: AllReduceFusion, context: RankContext) => object])[] = [
    ['MoE patterns', 'ERR_ARGUMENT', /0 to 5 or 8 to 11/, () => ({ pattern: 6 })],
    [
      'several bad numbers at once',
      'ERR_ARGUMENT',
      /rmsEps.*scaleFactor.*layoutCode/,
      () => ({ pattern: 3, rmsEps: -1, scaleFactor: 0, layoutCode: 7 }),
    ],
    ['no residual and no gamma', 'ERR_ARGUMENT', /residualIn.*rmsGamma/, () => ({ residualIn: undefined, rmsGamma: undefined })],
    ['a group that does not divide', 'ERR_ARGUMENT', /a divisor of 32/, () => ({ pattern: 8, blockQuantGroupSize: 5 })],
    ['a place for what is not written', 'ERR_ARGUMENT', /writes no quantOut/, ({ input }) => ({ quantOut: input })],
    [
      'a gamma of another dtype',
      'ERR_DTYPE',
      /rmsGamma/,
      (_, { device }) => ({ rmsGamma: Tensor.zeros([32], { device, dtype: 'float16' }) }),
    ],
    ['a residual of another shape', 'ERR_SHAPE', /residualIn/, (_, { device }) => ({ residualIn: Tensor.zeros([2, 16], { device }) })],
    ['scales of another shape', 'ERR_SHAPE', /\[2, 1\] for scaleOut/, ({ input }) => ({ pattern: 10, scaleOut: input })],
    [
      'one place for two results',
      'ERR_ARGUMENT',
      /different memory/,
      ({ residualIn }) => ({ residualOut: residualIn, normOut: residualIn }),
    ],
  ]
  it.each(CASES)('%s', async (_, code, message, change) => {
    const error = await refusal(change).then(
      () => null,
      (reason: unknown) => reason,
    )
    expect(error).toMatchObject({ code })
    expect((error as Error).message).toMatch(message)
  })

  it('a workspace with every problem of its sizes', async () => {
    await launch({ ranks: 1, devices: [only] }, async ({ comm }) => {
      const made = createAllReduceFusionWorkspace({ comm, maxTokenNum: 0, hiddenDim: 30, dtype: 'int32' })
      await expect(made).rejects.toThrow(/maxTokenNum.*hiddenDim.*dtype/)
    })
  })

  it('ranks that differ', async () => {
    const differ = launch({ ranks: 2, devices: [only] }, async ({ comm, device, rank }) => {
      using input = Tensor.zeros([2, 32], { device })
      await comm.allReduceFusion({ input, pattern: P.kAllReduce, fp32Acc: rank === 0 })
    })
    await expect(differ).rejects.toMatchObject({ code: 'ERR_COLLECTIVE_MISMATCH' })
  })
})

// Every collective on groups of CPU ranks, and of CPU and WebGPU ranks: bit for bit what a group of WebGPU ranks alone gives on the same data.
import { afterAll, describe, expect, it } from 'vitest'
import type { Communicator } from '../../runtime/comm/communicator.ts'
import type { ReduceOp } from '../../runtime/comm/device-comm.ts'
import type { AllReduceFusion } from '../../runtime/comm/fusion/options.ts'
import { fp4ScaleBytes } from '../../runtime/comm/fusion/scale-layout.ts'
import { type DType, encode } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { drawn } from '../support/effort.ts'
import { memoryWires } from '../support/memory-wire.ts'
import { launchOver } from '../support/over-wire.ts'
import { Random, seed } from '../support/random.ts'

const [gpu, cpu] = [await testDevice(), await openDevice('cpu')]
const loops = CpuDevice.open(null)
afterAll(() => {
  for (const device of [gpu, cpu, loops]) device.dispose()
})

const RANKS = 3
const ROWS = 6
const HIDDEN = 48
const start = seed()
const random = new Random(start)

type Named = readonly [name: string, devices: readonly Device[], wired?: boolean]
const GROUPS: readonly Named[] = [
  ['three cpu ranks', [cpu, cpu, cpu]],
  ['three cpu ranks without the addon', [loops, loops, loops]],
  ['webgpu, cpu, cpu', [gpu, cpu, cpu]],
  ['webgpu, webgpu, cpu', [gpu, gpu, cpu]],
  ['cpu, webgpu, webgpu', [cpu, gpu, gpu]],
  ['cpu and webgpu over a wire', [cpu, gpu, cpu], true],
]

/** A collective of a rank that brings `x`, or makes what it brings with `like`: drawn once, the same for all groups. Gives what it got. */
type Like = (values: Float32Array, shape: readonly number[], dtype?: DType) => Tensor
type Op = (context: RankContext, own: { x: Tensor; like: Like }) => Promise<readonly (Tensor | null | undefined)[]>

function draw(count: number): Float32Array {
  return Float32Array.from({ length: count }, () => (random.uniform() - 0.5) * 2 ** random.int(9))
}

const signs = (count: number): Float32Array => Float32Array.from({ length: count }, () => (random.int(2) ? 1 : -1))
const operands = Array.from({ length: RANKS }, () => draw(ROWS * HIDDEN))
const [stream, gamma, bias] = [draw(ROWS * HIDDEN), draw(HIDDEN), draw(HIDDEN)]
const experts = Array.from({ length: RANKS }, () => Float32Array.from({ length: 2 * ROWS * HIDDEN }, () => random.int(9) - 4))
const scales = Float32Array.from({ length: 2 * ROWS }, () => random.int(5) - 2)
const order = Int32Array.from({ length: 2 * ROWS }, () => random.int(2 * ROWS + 1) - 1)
/** The sums of these with `undo` are 1 or -1, so that every device's norm of them is the same. */
const units = signs(ROWS * HIDDEN)
const parts = Array.from({ length: RANKS }, () => Float32Array.from(units, () => random.int(9) - 4))
const undo = units.map((unit, i) => parts.reduce((left, part) => left - part[i]!, unit))

const OPS: [name: string, op: Op][] = [
  ...(['sum', 'prod', 'min', 'max', 'avg'] as ReduceOp[]).map((op): [string, Op] => [
    `allReduce ${op}`,
    async ({ comm }, { x }) => [await comm.allReduce(x, { op })],
  ]),
  ['reduce', async ({ comm }, { x }) => [await comm.reduce(x, { dst: 2 })]],
  ['reduceScatter', async ({ comm }, { x }) => [await comm.reduceScatter(x), await comm.reduceScatter(x, { dim: 0, op: 'avg' })]],
  ['reduceScatterV', async ({ comm }, { x }) => [await comm.reduceScatterV(x, { sizes: [10, 0, HIDDEN - 10] })]],
  ['allGather', async ({ comm }, { x }) => [await comm.allGather(x), await comm.allGather(x, { dim: 0 })]],
  ['allGatherV', async ({ comm, rank }, { x }) => comm.allGatherV([x.narrow(0, 0, rank + 1), x.narrow(0, 1, 2)])],
  ['gather', async ({ comm }, { x }) => [await comm.gather(x, { dst: 1 })]],
  ['broadcast', async ({ comm }, { x }) => [await comm.broadcast(x, { src: 2 }), await comm.broadcast(x, { src: 1, inPlace: true })]],
  ['scatter', async ({ comm, rank }, { x }) => [await comm.scatter(rank === 1 ? x : null, { src: 1 })]],
  ['allToAll', async ({ comm, rank }, { x }) => [await comm.allToAll(x, { splits: [1, 2, 3].map((_, i) => (i === rank ? 4 : 1)) })]],
  ['allGather2D', async ({ comm }, { x }) => [await comm.allGather2D(x, { pitch: HIDDEN, stride: 5, width: 5, height: ROWS })]],
  ['send and recv', async ({ comm }, { x }) => (await Promise.all([comm.recv(x.shape, x.dtype), comm.send(x)])).slice(0, 1) as Tensor[]],
  [
    'allReduceResidualBiasRMSNorm: the residual, and rows of ones',
    async ({ comm }, { x, like }) => {
      const residual = like(stream, [ROWS, HIDDEN])
      const weight = like(gamma, [HIDDEN])
      await comm.allReduceResidualBiasRMSNorm({ x, residual, weight, bias: like(bias, [HIDDEN]) })
      const ones = { x: like(parts[comm.rank]!, [ROWS, HIDDEN]), residual: like(undo, [ROWS, HIDDEN]), weight, eps: 0 }
      return [residual, await comm.allReduceResidualBiasRMSNorm(ones), ones.residual]
    },
  ],
  [
    'allReduceResidualBiasRMSNormEx: the residual, and rows of ones',
    async ({ comm }, { x, like }) => {
      const weight = like(gamma, [HIDDEN])
      const whole = { group0: null, group1: null, localTokenNums: [ROWS], weight }
      const residual = like(stream, [ROWS, HIDDEN])
      await comm.allReduceResidualBiasRMSNormEx({ ...whole, hidden: x, residual })
      const ones = { hidden: like(parts[comm.rank]!, [ROWS, HIDDEN]), residual: like(undo, [ROWS, HIDDEN]), eps: 0 }
      return [residual, await comm.allReduceResidualBiasRMSNormEx({ ...whole, ...ones }), ones.residual]
    },
  ],
  ['allReduceFusion: the residual', async ({ comm }, { x, like }) => [(await comm.allReduceFusion(rows(comm, x, like, 1))).residualOut]],
  [
    'allReduceFusion: the sum, rounded once or after every rank',
    async ({ comm }, { x }) => [
      (await comm.allReduceFusion({ input: x, pattern: 0 })).output,
      (await comm.allReduceFusion({ input: x, pattern: 0, fp32Acc: false })).output,
    ],
  ],
  ...([1, 2, 3, 4, 5, 8, 9, 10, 11] as const).flatMap((pattern) =>
    (pattern === 3 || pattern === 5 ? ([0, 1, 2] as const) : ([0] as const)).map((layoutCode): [string, Op] => [
      `allReduceFusion, pattern ${pattern}${layoutCode ? `, layout ${layoutCode}` : ''}, of rows of ones`,
      async ({ comm, device }, { like }) => {
        // What padding of tiles holds in new memory nobody says: these get places of their own.
        const tiles = (pattern === 3 || pattern === 5) && layoutCode < 2
        const size = fp4ScaleBytes(layoutCode, ROWS, HIDDEN / 16)
        const scaleOut = tiles ? Tensor.zeros([size], { dtype: 'uint8', device }) : undefined
        return Object.values(await comm.allReduceFusion({ ...ones(comm, like, pattern), layoutCode, scaleOut }))
      },
    ]),
  ),
  [
    'allReduceFusion into places: padding stays as it was',
    async ({ comm, device }, { like }) => {
      const scaleOut = Tensor.fromBytes(new Uint8Array(8 * 4).fill(0xad), [32], 'uint8', device)
      const found = await comm.allReduceFusion({ ...ones(comm, like, 5), layoutCode: 1, scaleOut })
      return [scaleOut, found.quantOut]
    },
  ],
  [
    'moeAllReduceFusion of small integers',
    async ({ comm, rank }, { like }) => {
      const found = await comm.moeAllReduceFusion({
        moeReductionScaleInput: like(scales, [2, ROWS], 'float32'),
        moeReductionActiveExpertsTokenInput: like(experts[rank]!, [2 * ROWS, HIDDEN]),
        moeReductionTokenInput: like(parts[rank]!, [ROWS, HIDDEN]),
        residualIn: like(undo, [ROWS, HIDDEN]),
        rmsGamma: like(gamma, [HIDDEN]),
      })
      return [found.residualOut]
    },
  ],
  [
    'moeFinalizeAllReduceFusion of small integers',
    async ({ comm, rank, device }, { like }) => {
      const found = await comm.moeFinalizeAllReduceFusion({
        input: like(experts[rank]!, [2 * ROWS, HIDDEN]),
        expandedIdxToPermutedIdx: Tensor.from(order, { shape: [ROWS, 2], device }),
        expertScaleFactor: like(scales, [ROWS, 2]),
        sharedExpertOutput: like(parts[rank]!, [ROWS, HIDDEN]),
        routedScalingFactor: 2,
        residualIn: like(undo, [ROWS, HIDDEN]),
        rmsGamma: like(gamma, [HIDDEN]),
      })
      return [found.residualOut]
    },
  ],
]

function rows({ rank }: Communicator, input: Tensor, like: Like, pattern: AllReduceFusion['pattern']): AllReduceFusion {
  expect(input.shape, `the operand of rank ${rank}`).toEqual([ROWS, HIDDEN])
  const numbers = { scaleFactor: 0.75, blockQuantGroupSize: 12 }
  const options =
    pattern === 8 || pattern === 9 ? { blockQuantGroupSize: numbers.blockQuantGroupSize } : { scaleFactor: numbers.scaleFactor }
  return { input, pattern, residualIn: like(stream, [ROWS, HIDDEN]), rmsGamma: like(gamma, [HIDDEN]), ...options }
}

/** Rows whose norm is exact on every device: 1 or -1 times gamma. */
function ones(comm: Communicator, like: Like, pattern: AllReduceFusion['pattern']): AllReduceFusion {
  const residualIn = like(undo, [ROWS, HIDDEN])
  return { ...rows(comm, like(parts[comm.rank]!, [ROWS, HIDDEN]), like, pattern), residualIn, rmsEps: 0 }
}

/** What each rank got, as text; on a rank that gets nothing, null. */
async function run([, devices, wired]: Named, dtype: DType, op: Op): Promise<(string | null)[][]> {
  const main = async (context: RankContext): Promise<(string | null)[]> => {
    const { device, rank } = context
    const like: Like = (values, shape, type = dtype) => Tensor.fromBytes(encode(type, values), shape, type, device)
    const found = await op(context, { x: like(operands[rank]!, [ROWS, HIDDEN]), like })
    return Promise.all(
      found.map(async (tensor) => tensor && `${tensor.dtype} [${tensor.shape}] ${Buffer.from(await tensor.bytes()).toString('hex')}`),
    ) as Promise<(string | null)[]>
  }
  if (wired) return launchOver(memoryWires(RANKS, { seed: start }), { devices: [...devices], timeoutMs: 20_000 }, main)
  return launch({ ranks: RANKS, devices, timeoutMs: 20_000 }, main)
}

/** The same ranks on each device, on GPUs alone: as many opened adapters as the group has devices. */
const others = [gpu, await testDevice(), await testDevice()]
afterAll(() => {
  for (const device of others.slice(1)) device.dispose()
})
function onGpus([name, devices, wired]: Named): Named {
  const distinct = [...new Set(devices)]
  return [name, devices.map((device, rank) => others[wired ? rank : distinct.indexOf(device)]!)]
}

// Each type with some of the groups, in other runs with others.
describe.each(['float32', 'bfloat16', 'float16'] as const)(`%s (seed ${start})`, (dtype) => {
  const turn = start + dtype.length
  it.each(drawn(GROUPS, 2, turn).map((group) => ({ name: group[0], group })))('$name', async ({ group }) => {
    for (const [name, op] of OPS) {
      const [wanted, found] = [await run(onGpus(group), dtype, op), await run(group, dtype, op)]
      for (const rank of wanted.keys()) expect(found[rank], `${name}, rank ${rank}`).toEqual(wanted[rank])
    }
  })
})

it.each(['float32', 'bfloat16', 'float16'] as const)('two-shot over a wire, %s: another round, the same bits', async (dtype) => {
  const group: Named = ['cpu and webgpu over a wire', [cpu, gpu, cpu], true]
  const both = (algorithm: 'one-shot' | 'two-shot'): Promise<(string | null)[][]> =>
    run(group, dtype, async ({ comm }, { x, like }) => {
      const before = comm.stats().crossings
      const [residual, weight] = [like(stream, [ROWS, HIDDEN]), like(gamma, [HIDDEN])]
      const sums = [await comm.allReduce(x, { algorithm }), await comm.allReduce(x, { algorithm, op: 'avg' })]
      const normed = await comm.allReduceResidualBiasRMSNorm({ x, residual, weight, algorithm })
      const fused = await comm.allReduceFusion({ ...rows(comm, x, like, 4), useOneshot: algorithm === 'one-shot' })
      expect(comm.stats().crossings - before).toBe(algorithm === 'one-shot' ? 4 : 8)
      return [...sums, normed, residual, ...Object.values(fused)]
    })
  expect(await both('two-shot')).toEqual(await both('one-shot'))
})

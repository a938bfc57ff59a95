// What collectives over a wire cost and give: rounds and bytes of each, and the bits of the same program on one device.
import { afterAll, describe, expect, it, vi } from 'vitest'
import { platform } from '#platform'
import type { Communicator } from '../../runtime/comm/communicator.ts'
import type { ReduceOp } from '../../runtime/comm/device-comm.ts'
import { floatsIn, sumFloats } from '../../runtime/comm/float-sum.ts'
import { AllReduceFusionPattern } from '../../runtime/comm/fusion/patterns.ts'
import { createAllReduceFusionWorkspace } from '../../runtime/comm/fusion/workspace.ts'
import type { DType } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { slotsOf } from '../../runtime/core/tree.ts'
import type { Device } from '../../runtime/device/device.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { memoryWires } from '../support/memory-wire.ts'
import { launchOver } from '../support/over-wire.ts'
import { Random, seed } from '../support/random.ts'

const [a, b] = [await testDevice(), await testDevice()]
afterAll(() => {
  for (const device of [a, b]) device.dispose()
})

const start = seed()
const random = new Random(start)
const alternate = (ranks: number): Device[] => Array.from({ length: ranks }, (_, rank) => (rank % 2 ? b : a))
const over = <T>(ranks: number, main: (context: RankContext) => Promise<T>): Promise<T[]> =>
  launchOver(memoryWires(ranks, { seed: start, delayMs: 1 }), { devices: alternate(ranks), timeoutMs: 10_000 }, main)

describe('rounds, and bytes that each rank sends', () => {
  const RANKS = 3
  const COUNT = 24
  const S = 4 * COUNT
  const everybody = (bytes: number): number[] => Array<number>(RANKS).fill(bytes)
  const only = (rank: number, bytes: number): number[] => everybody(0).with(rank, bytes)
  const pad = (x: Tensor): Tensor => Tensor.full([COUNT], 0, { device: x.device as Device })
  type Call = (comm: Communicator, x: Tensor) => Promise<unknown>
  const cases: [name: string, call: Call, rounds: number | number[], bytes: number[]][] = [
    ['barrier', (comm) => comm.barrier(), 0, everybody(0)],
    ['allocate', (comm) => comm.allocate([COUNT]), 0, everybody(0)],
    ['register', (comm, x) => comm.register(x), 0, everybody(0)],
    ['split', (comm) => comm.split({ color: 0 }), 0, everybody(0)],
    ['allReduce of nothing', (comm, x) => comm.allReduce(x.narrow(0, 0, 0)), 0, everybody(0)],
    ['allReduce, one-shot', (comm, x) => comm.allReduce(x, { algorithm: 'one-shot' }), 1, everybody(S)],
    ['allReduce, two-shot', (comm, x) => comm.allReduce(x, { algorithm: 'two-shot' }), 2, everybody(S + S / RANKS)],
    ['max', (comm, x) => comm.allReduce(x, { op: 'max', algorithm: 'one-shot' }), 1, everybody(S)],
    ['allGather', (comm, x) => comm.allGather(x), 1, everybody(S)],
    ['allGatherV', (comm, x) => comm.allGatherV(x.narrow(0, 0, 3 + comm.rank)), 1, [12, 16, 20]],
    ['reduceScatter', (comm, x) => comm.reduceScatter(x), 1, everybody(S)],
    ['reduceScatterV', (comm, x) => comm.reduceScatterV(x, { sizes: [10, 0, 14] }), 1, everybody(S)],
    ['gather', (comm, x) => comm.gather(x, { dst: 1 }), 1, everybody(S).with(1, 0)],
    ['reduce', (comm, x) => comm.reduce(x, { dst: 2 }), 1, everybody(S).with(2, 0)],
    ['broadcast', (comm, x) => comm.broadcast(x, { src: 2 }), 1, only(2, S)],
    ['broadcast in place', (comm, x) => comm.broadcast(x, { src: 1, inPlace: true }), 1, only(1, S)],
    ['scatter', (comm, x) => comm.scatter(comm.rank === 1 ? x : null, { src: 1 }), 1, only(1, (2 * S) / RANKS)],
    ['allToAll', (comm, x) => comm.allToAll(x), 1, everybody((2 * S) / RANKS)],
    ['allGather2D', (comm, x) => comm.allGather2D(x, { pitch: 6, stride: 2, width: 2, height: 4 }), 1, everybody(32)],
    ['send and recv', (comm, x) => pass(comm, x), [1, 0, 1], [S, 0, 0]],
    ['fused norm', (comm, x) => norm(comm, x, 'one-shot'), 1, everybody(S)],
    ['fused norm, two-shot', (comm, x) => norm(comm, x, 'two-shot'), 2, everybody(S + (2 * S) / RANKS)],
    ['fused norm between layouts', (comm, x) => reshard(comm, x), 2, everybody((2 * S) / RANKS + S / RANKS)],
  ]
  const pass = (comm: Communicator, x: Tensor): Promise<unknown> =>
    comm.rank === 0 ? comm.send(x, { dst: 2 }) : comm.rank === 2 ? comm.recv([COUNT], 'float32', { src: 0 }) : Promise.resolve()
  const norm = (comm: Communicator, x: Tensor, algorithm: 'one-shot' | 'two-shot'): Promise<unknown> => {
    const rows = x.reshape([6, 4])
    const weight = Tensor.full([4], 1, { device: x.device as Device })
    return comm.allReduceResidualBiasRMSNorm({ x: rows, residual: pad(x).reshape([6, 4]), weight, algorithm })
  }
  const reshard = (comm: Communicator, x: Tensor): Promise<unknown> => {
    const weight = Tensor.full([4], 1, { device: x.device as Device })
    const rows = { hidden: x.reshape([6, 4]), residual: pad(x).reshape([6, 4]), weight }
    return comm.allReduceResidualBiasRMSNormEx({ ...rows, group0: null, group1: null, localTokenNums: [6] })
  }

  it.each(cases)('%s', async (_, call, rounds, bytes) => {
    const found = await over(RANKS, async ({ comm, device }) => {
      const before = comm.stats()
      await call(comm, Tensor.full([COUNT], comm.rank, { device }))
      const after = comm.stats()
      return [after.crossings - before.crossings, after.hostBytes - before.hostBytes]
    })
    expect(found).toEqual(bytes.map((sent, rank) => [typeof rounds === 'number' ? rounds : rounds[rank], sent]))
  })

  it('none among ranks of one thread, on one device or several', async () => {
    for (const devices of [[a], [a, b]]) {
      const found = await launch({ ranks: 4, devices }, async ({ comm, device }) => {
        await comm.allReduce(Tensor.full([COUNT], 1, { device }))
        const { crossings, hostBytes, collectives } = comm.stats()
        return [crossings, hostBytes, collectives]
      })
      expect(found).toEqual(Array(4).fill([0, 0, 1]))
    }
  })
})

describe.each([2, 3, 5])(`the bits of one device, %i ranks (seed ${start})`, (ranks) => {
  const ROWS = 5
  const HIDDEN = 64
  const draw = (): Float32Array => random.floats(ROWS * HIDDEN).map((x) => x * 2 ** (random.int(24) - 12))
  const both = async (main: (context: RankContext) => Promise<Uint8Array[]>): Promise<void> => {
    const [wanted] = await launch({ ranks, devices: [a] }, main)
    for (const [rank, found] of (await over(ranks, main)).entries()) {
      for (const [i, bytes] of found.entries()) expect(Buffer.compare(bytes, wanted![i]!), `rank ${rank}, result ${i}`).toBe(0)
    }
  }

  it('allReduce, by either algorithm', async () => {
    const x = Array.from({ length: ranks }, draw)
    const algorithms = ['one-shot', 'two-shot'] as const
    for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
      for (const op of ['sum', 'avg', 'prod', 'max'] as ReduceOp[]) {
        await both(async ({ comm, device, rank }) => {
          const own = Tensor.from(x[rank]!, { dtype, device })
          const wired = comm.describe().includes('joined by')
          const sums = await Promise.all(algorithms.map((algorithm) => comm.allReduce(own, wired ? { op, algorithm } : { op })))
          return Promise.all(sums.map((sum) => sum.bytes()))
        })
      }
    }
  })

  it('the fused norm and the fused patterns', async () => {
    const x = Array.from({ length: ranks }, draw)
    const [stream, gamma] = [draw(), random.floats(HIDDEN)]
    for (const dtype of ['float32', 'bfloat16'] as DType[]) {
      await both(async ({ comm, device, rank }) => {
        const tensor = (data: Float32Array): Tensor => Tensor.from(data, { shape: [ROWS, HIDDEN], dtype, device })
        const weight = Tensor.from(gamma, { dtype, device })
        const [residual, input] = [tensor(stream), tensor(x[rank]!)]
        const normed = await comm.allReduceResidualBiasRMSNorm({ x: input, residual, weight })
        const pattern = AllReduceFusionPattern.kARResidualRMSNormFP8Quant
        const found = [normed, residual]
        for (const useOneshot of [true, false]) {
          const rows = { input, pattern, residualIn: tensor(stream), rmsGamma: weight, scaleFactor: 0.5 }
          const { residualOut, quantOut } = await comm.allReduceFusion({ ...rows, useOneshot })
          found.push(residualOut!, quantOut!)
        }
        return Promise.all(found.map((result) => result.bytes()))
      })
    }
  })

  it('sums by the tree, sums rounded after every rank, a workspace, the ends of a mixture of experts', async () => {
    const TOKENS = 3
    const EXPERTS = 2
    const spans = Array.from({ length: ranks }, (_, rank) => ({ start: rank * 2, count: 2 }))
    const [trees, rows] = [1, 2].map(() => Array.from({ length: ranks }, () => random.floats(EXPERTS * TOKENS * HIDDEN)))
    const shared = Array.from({ length: ranks }, () => random.floats(TOKENS * HIDDEN))
    const scales = Array.from({ length: ranks }, () => random.floats(EXPERTS * TOKENS))
    const order = Array.from({ length: ranks }, () => Array.from({ length: TOKENS * EXPERTS }, () => random.int(EXPERTS * TOKENS + 1) - 1))
    const [stream, gamma] = [random.floats(TOKENS * HIDDEN), random.floats(HIDDEN)]
    await both(async ({ comm, device, rank }) => {
      const like = (data: Float32Array, shape: number[]): Tensor => Tensor.from(data, { shape, device })
      const hidden = [TOKENS, HIDDEN]
      const tree = await comm.allReduceTree(like(trees![rank]!, [EXPERTS * TOKENS * HIDDEN]), {
        tree: { spans },
        shape: [(EXPERTS * TOKENS * HIDDEN) / slotsOf(spans)],
      })
      const input = like(shared[rank]!, hidden)
      const { output } = await comm.allReduceFusion({ input, pattern: AllReduceFusionPattern.kAllReduce, fp32Acc: false })
      const workspace = await createAllReduceFusionWorkspace({ comm, maxTokenNum: TOKENS, hiddenDim: HIDDEN, dtype: 'float32' })
      const after = { residualIn: like(stream, hidden), rmsGamma: like(gamma, [HIDDEN]), workspace }
      const moe = await comm.moeAllReduceFusion({
        ...after,
        moeReductionScaleInput: like(scales[rank]!, [EXPERTS, TOKENS]),
        moeReductionActiveExpertsTokenInput: like(rows![rank]!, [EXPERTS * TOKENS, HIDDEN]),
        moeReductionTokenInput: input,
      })
      const found = [await tree.bytes(), await output!.bytes(), await moe.normOut!.bytes(), await moe.residualOut!.bytes()]
      const last = await comm.moeFinalizeAllReduceFusion({
        ...after,
        input: like(rows![rank]!, [EXPERTS * TOKENS, HIDDEN]),
        expandedIdxToPermutedIdx: Tensor.from(order[rank]!, { shape: [TOKENS, EXPERTS], dtype: 'int32', device }),
        expertScaleFactor: like(scales[rank]!, [TOKENS, EXPERTS]),
        sharedExpertOutput: input,
      })
      found.push(await last.normOut!.bytes())
      workspace.destroy()
      return found
    })
  })
})

it('partials are added on the host in their order, by the addon or without it', () => {
  const parts = [2 ** 24, 1, -(2 ** 24), 0.1, -0].map((x) => new Uint8Array(Float32Array.of(x, -0, x / 3).buffer))
  const wanted = Float32Array.of(0, -0, 0)
  for (const i of [0, 2]) {
    let sum = new Float32Array(parts[0]!.buffer)[i]!
    for (const part of parts.slice(1)) sum = Math.fround(sum + new Float32Array(part.buffer)[i]!)
    wanted[i] = sum
  }
  const shifted = parts.map((part) => {
    const bytes = new Uint8Array(new SharedArrayBuffer(part.length + 3), 3)
    bytes.set(part)
    return bytes
  })
  const check = (): void => {
    for (const given of [parts, shifted]) {
      expect(Buffer.compare(new Uint8Array(sumFloats(given.map(floatsIn)).buffer), new Uint8Array(wanted.buffer))).toBe(0)
    }
  }
  check()
  const absent = vi.spyOn(platform, 'addon').mockReturnValue(null)
  check()
  expect(absent).toHaveBeenCalled()
  absent.mockRestore()
})

it('several collectives, groups and messages under way at once keep their order', async () => {
  const found = await over(4, async ({ comm, device, rank }) => {
    const half = (await comm.split({ color: rank % 2, key: -rank }))!
    const x = Tensor.from([rank + 1], { device })
    const peer = rank ^ 1
    const under = [
      comm.allReduce(x),
      half.allReduce(x),
      comm.allGather(x),
      comm.send(x, { dst: peer }).then(() => null),
      half.allGather(x),
      comm.recv([1], 'float32', { src: peer }),
      comm.allReduce(x, { op: 'max' }),
    ]
    const data = await Promise.all((await Promise.all(under)).map((y) => y?.data()))
    half.destroy()
    return data.map((list) => (list ? [...(list as Float32Array)] : null))
  })
  for (const [rank, list] of found.entries()) {
    const own = rank % 2 ? [4, 2] : [3, 1]
    expect(list).toEqual([[10], [own[0]! + own[1]!], [1, 2, 3, 4], null, own, [(rank ^ 1) + 1], [4]])
  }
})

it('a group says how its ranks are joined; tune agrees on figures', async () => {
  const found = await over(3, async ({ comm }) => {
    expect(comm.query('hasAllGather2D')).toBe(true)
    expect([comm.deviceRank, comm.deviceSize]).toEqual([0, 1])
    const line = comm.describe()
    const { bitsEqual, stepBytes } = await comm.tune()
    expect(comm.describe()).toContain(`counted as ${stepBytes} bytes`)
    return { line, bitsEqual, stepBytes }
  })
  expect(new Set(found.map(({ stepBytes }) => stepBytes)).size).toBe(1)
  for (const { line, bitsEqual } of found) {
    expect(bitsEqual).toBe(true)
    expect(line).toMatch(
      /^3 ranks \(1 on .+, 1 on .+, 1 on .+, joined by memory of one thread, for tests\): reductions one-shot or two-shot/,
    )
  }
})

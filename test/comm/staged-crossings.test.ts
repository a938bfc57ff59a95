// What collectives of CPU and WebGPU ranks together cost a GPU: submits, waits, and the bytes that leave it and come back.
import { afterAll, describe, expect, it } from 'vitest'
import type { Communicator } from '../../runtime/comm/communicator.ts'
import { AllReduceFusionPattern } from '../../runtime/comm/fusion/patterns.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'

const [gpu, cpu] = [await testDevice(), await openDevice('cpu')]
afterAll(() => {
  for (const device of [gpu, cpu]) device.dispose()
})

const COUNT = 32
const S = 4 * COUNT
const on = (x: Tensor): { device: Device } => ({ device: x.device as Device })
const rows = (x: Tensor): Tensor => x.reshape([2, 16])
const gamma = (x: Tensor): Tensor => Tensor.full([16], 1, on(x))

type Call = (comm: Communicator, x: Tensor) => Promise<unknown>
/**
 * Bytes out of the GPU and into it, where it has one rank and where it has two; and what each rank writes to its device before it comes to the
 * collective. One submit and one wait where anything leaves the GPU, else none.
 */
const CASES: [name: string, call: Call, out: [number, number], into: [number, number], brought?: number][] = [
  ['barrier', (comm) => comm.barrier(), [0, 0], [0, 0]],
  ['allReduce', (comm, x) => comm.allReduce(x), [S, S], [S, S]],
  ['allReduce of bfloat16', (comm, x) => comm.allReduce((x.device as Device).cast(x, 'bfloat16')), [S / 2, S], [S / 2, S / 2]],
  ['max', (comm, x) => comm.allReduce(x, { op: 'max' }), [S, S], [S, S]],
  ['allGather', (comm, x) => comm.allGather(x), [S, 2 * S], [2 * S, 3 * S]],
  ['broadcast from the GPU', (comm, x) => comm.broadcast(x), [S, S], [S, S]],
  ['broadcast from the CPU', (comm, x) => comm.broadcast(x, { src: comm.size - 1 }), [0, 0], [S, S]],
  ['reduce to the CPU', (comm, x) => comm.reduce(x, { dst: comm.size - 1 }), [S, S], [0, 0]],
  ['a sum by the tree', (comm, x) => tree(comm, x, comm.size === 2 ? [1, 1] : [1, 1, 2]), [S, S], [S, S]],
  ['a sum by the tree of which the GPU holds nothing', (comm, x) => tree(comm, x, [0, 0, 1].slice(-comm.size)), [0, 0], [S, S]],
  ['a sum to which the GPU brings nothing', (comm, x) => comm.allReduce(x, { contribution: last(comm) }), [0, 0], [S, S]],
  ['fused norm', (comm, x) => norm(comm, x), [S, S], [2 * S, 2 * S], 64],
  ['fused pattern', (comm, x) => fused(comm, x), [S, S], [S + COUNT, S + COUNT], 64],
  ['the end of a mixture of experts: its rows stay', (comm, x) => experts(comm, x), [S, S], [2 * S, 2 * S], 4 * (10 + 160 + 16)],
]

const last = (comm: Communicator): boolean => comm.rank === comm.size - 1

/** Each rank holds so many blocks, which are one subtree. */
function tree(comm: Communicator, x: Tensor, counts: readonly number[]): Promise<unknown> {
  const spans = counts.map((count, rank) => ({ start: counts.slice(0, rank).reduce((a, b) => a + b, 0), count }))
  return comm.allReduceTree(x, { tree: { spans }, shape: [COUNT] })
}

async function norm(comm: Communicator, x: Tensor): Promise<unknown> {
  const residual = await comm.allocate([2, 16], { shared: true })
  return comm.allReduceResidualBiasRMSNorm({ x: rows(x), residual, weight: gamma(x) })
}

function fused(comm: Communicator, x: Tensor): Promise<unknown> {
  const pattern = AllReduceFusionPattern.kARResidualRMSNormFP8Quant
  return comm.allReduceFusion({ input: rows(x), residualIn: rows(x), rmsGamma: gamma(x), pattern, scaleFactor: 1 })
}

function experts(comm: Communicator, x: Tensor): Promise<unknown> {
  return comm.moeAllReduceFusion({
    moeReductionScaleInput: Tensor.full([5, 2], 1, on(x)),
    moeReductionActiveExpertsTokenInput: Tensor.full([10, 16], 1, on(x)),
    moeReductionTokenInput: rows(x),
    residualIn: rows(x),
    rmsGamma: gamma(x),
  })
}

describe.each([
  ['webgpu, cpu', [gpu, cpu], 0],
  ['webgpu, webgpu, cpu', [gpu, gpu, cpu], 1],
] as const)('%s', (_, devices, which) => {
  it.each(CASES)('%s', async (_, call, out, into, brought = 0) => {
    const found = await launch({ ranks: devices.length, devices }, async ({ comm, device }) => {
      const x = Tensor.full([COUNT], comm.rank + 1, { device })
      // Once for what is made once.
      await call(comm, x)
      await device.sync()
      await comm.barrier()
      const before = { ...comm.stats(), ...gpu.stats }
      await call(comm, x)
      const after = { ...comm.stats(), ...gpu.stats }
      await comm.barrier()
      await device.sync()
      await comm.barrier()
      const { submits, maps, crossings, hostBytes, bytesToHost } = after
      const waits = [submits - before.submits, maps - before.maps, crossings, hostBytes]
      return { waits, out: bytesToHost - before.bytesToHost, into: gpu.stats.bytesToDevice - before.bytesToDevice }
    })
    const [first] = found
    const some = Number(out[which] > 0)
    expect(first).toMatchObject({ waits: [some, some, 0, 0], out: out[which] })
    expect(first!.into - brought * (which + 1)).toBe(into[which])
  })
})

describe('contribution: false', () => {
  it('a rank that says so is not read: what it holds does not matter', async () => {
    const devices = [gpu, gpu, cpu]
    const results = await launch({ ranks: 3, devices }, async ({ comm, device }) => {
      const contribution = last(comm)
      const x = Tensor.full([2, 16], contribution ? 2 : Number.NaN, { device })
      const residual = await comm.allocate([2, 16], { shared: true })
      residual.setBytes(new Uint8Array(residual.byteLength))
      const weight = Tensor.full([16], 1, { device })
      const sum = await (await comm.allReduce(x, { contribution })).data()
      const mean = await (await comm.allReduce(x, { op: 'avg', contribution })).data()
      const none = await (await comm.allReduce(x, { contribution: false })).data()
      await comm.allReduceResidualBiasRMSNorm({ x, residual, weight, contribution })
      return [sum, mean, none, await residual.data()].map((values) => [...new Set(values as Float32Array)])
    })
    for (const result of results) expect(result).toEqual([[2], [Math.fround(2 / 3)], [0], [2]])
  })

  it('is for sums and averages', async () => {
    const told = launch({ ranks: 2, devices: [gpu, cpu] }, async ({ comm, device }) => {
      await comm.allReduce(Tensor.full([4], 1, { device }), { op: 'max', contribution: false })
    })
    await expect(told).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
  })
})

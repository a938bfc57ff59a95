// How much work collectives cost: dispatches, submits, maps and bytes that cross between device and host, counted by the devices.
import { afterAll, describe, expect, it } from 'vitest'
import type { DType } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import type { DeviceStats } from '../../runtime/device/webgpu/recorder.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'

const [a, b, c] = [await testDevice(), await testDevice(), await testDevice()]
afterAll(() => {
  for (const device of [a, b, c]) device.dispose()
})

function since(device: WebGpuDevice, before: DeviceStats): DeviceStats {
  const now = device.stats
  const names = Object.keys(now) as (keyof DeviceStats)[]
  return Object.fromEntries(names.map((name) => [name, now[name] - before[name]])) as unknown as DeviceStats
}

/** Long enough for a submit that waits for the end of a turn to show. */
const aWhile = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 15))

/** What one collective costs on one device: until all ranks have its result, and until all of them have read it. */
async function costOf<P>(
  ranks: number,
  prepare: (context: RankContext) => Promise<P>,
  act: (context: RankContext, prepared: P) => Promise<Tensor>,
): Promise<{ recorded: DeviceStats; read: DeviceStats }> {
  const [costs] = await launch({ ranks, device: a }, async (context) => {
    const { comm, device } = context
    const prepared = await prepare(context)
    await device.sync()
    await comm.barrier()
    const before = a.stats
    const y = await act(context, prepared)
    await aWhile()
    const recorded = since(a, before)
    await comm.barrier()
    await y.bytes()
    await comm.barrier()
    return { recorded, read: since(a, before) }
  })
  return costs!
}

const NOTHING = { submits: 0, maps: 0, dispatches: 0, bytesToDevice: 0, bytesToHost: 0 }

describe('one device: a collective is one dispatch, and runs when somebody reads', () => {
  for (const ranks of [1, 2, 8, 16]) {
    for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
      it(`fused all-reduce with norm, ${ranks} ranks, ${dtype}`, async () => {
        const { recorded, read } = await costOf(
          ranks,
          async ({ comm, device }) => {
            const x = await comm.allocate([3, 64], { dtype })
            const residual = await comm.allocate([3, 64], { dtype, shared: true })
            const [weight, bias] = [await comm.allocate([64], { dtype, shared: true }), await comm.allocate([64], { dtype, shared: true })]
            for (const tensor of [x, residual, weight, bias]) tensor.set(Array(tensor.size).fill(1))
            await device.sync()
            return { x, residual, weight, bias }
          },
          ({ comm }, operands) => comm.allReduceResidualBiasRMSNorm(operands),
        )
        expect(recorded).toEqual(NOTHING)
        const bytes = 3 * 64 * (dtype === 'float32' ? 4 : 2)
        expect(read).toEqual({ submits: 1, maps: 1, dispatches: 1, bytesToDevice: 0, bytesToHost: bytes })
      })
    }
  }

  const symmetric = async ({ comm }: RankContext): Promise<Tensor> => {
    const x = await comm.allocate([4, 64])
    x.set(Array(256).fill(1))
    return x
  }

  for (const ranks of [2, 8, 16]) {
    const KINDS: Record<string, { act: (context: RankContext, x: Tensor) => Promise<Tensor>; dispatches: number; bytes: number }> = {
      allReduce: { act: ({ comm }, x) => comm.allReduce(x), dispatches: 1, bytes: 1024 },
      'allGather along 0': { act: ({ comm }, x) => comm.allGather(x, { dim: 0 }), dispatches: 1, bytes: 1024 * ranks },
      'allGather along 1': { act: ({ comm }, x) => comm.allGather(x, { dim: 1 }), dispatches: 1, bytes: 1024 * ranks },
      broadcast: { act: ({ comm }, x) => comm.broadcast(x, { src: 1 }), dispatches: 0, bytes: 1024 },
    }
    for (const [name, { act, dispatches, bytes }] of Object.entries(KINDS)) {
      it(`${name}, ${ranks} ranks; all ranks read the result at once`, async () => {
        const { recorded, read } = await costOf(ranks, symmetric, act)
        expect(recorded).toEqual(NOTHING)
        expect(read).toEqual({ submits: 1, maps: 1, dispatches, bytesToDevice: 0, bytesToHost: bytes })
      })
    }

    it(`reduceScatter, ${ranks} ranks, each reading its part`, async () => {
      const { recorded, read } = await costOf(
        ranks,
        async ({ comm }) => comm.allocate([ranks * 8]),
        ({ comm }, x) => comm.reduceScatter(x),
      )
      expect(recorded).toEqual(NOTHING)
      expect(read).toEqual({ submits: 1, maps: 1, dispatches: 1, bytesToDevice: 0, bytesToHost: ranks * 32 })
    })
  }

  it('a group of one does nothing at all', async () => {
    const { read } = await costOf(1, symmetric, ({ comm }, x) => comm.allReduce(x))
    expect(read).toEqual({ submits: 1, maps: 1, dispatches: 0, bytesToDevice: 0, bytesToHost: 1024 })
  })

  it('a chain of collectives is still one submit and one map', async () => {
    const { recorded, read } = await costOf(4, symmetric, async ({ comm }, x) => {
      let y = x
      for (let i = 0; i < 10; i++) y = await comm.allReduce(y)
      return y
    })
    expect(recorded).toEqual(NOTHING)
    expect(read).toEqual({ submits: 1, maps: 1, dispatches: 10, bytesToDevice: 0, bytesToHost: 1024 })
  })
})

/** What one collective costs each of several devices, without reading its result: uploads count once they are submitted. */
async function crossings(devices: WebGpuDevice[], perDevice: number, dtype: DType, size: number, fused: boolean): Promise<DeviceStats[]> {
  const ranks = devices.length * perDevice
  const [costs] = await launch({ ranks, devices }, async ({ comm, device, rank }) => {
    const x = Tensor.full([1, size], rank, { dtype, device })
    const [residual, weight] = [Tensor.full([1, size], 0, { dtype, device }), Tensor.full([size], 1, { dtype, device })]
    await device.sync()
    await comm.barrier()
    const before = devices.map((each) => each.stats)
    await (fused ? comm.allReduceResidualBiasRMSNorm({ x, residual, weight }) : comm.allReduce(x))
    await aWhile()
    const maps = devices.map((each, i) => since(each, before[i]!).maps)
    await comm.barrier()
    await device.sync() // submits; it reads 4 bytes a rank
    await comm.barrier()
    return devices.map((each, i) => ({ ...since(each, before[i]!), maps: maps[i]! }))
  })
  return costs!
}

describe('several devices: one map each, one partial each way, however many ranks share a device', () => {
  for (const fused of [false, true]) {
    const name = fused ? 'fused all-reduce with norm' : 'all-reduce'
    for (const perDevice of [1, 2, 4, 8]) {
      for (const dtype of ['float32', 'bfloat16'] as const) {
        it(`${name} of 1000 ${dtype}, two devices with ${perDevice} ranks each`, async () => {
          const partial = 1000 * (dtype === 'bfloat16' && perDevice === 1 ? 2 : 4) // sums travel as float32
          for (const cost of await crossings([a, b], perDevice, dtype, 1000, fused)) {
            expect(cost.maps).toBe(1)
            expect(cost.bytesToHost).toBe(partial + 4 * perDevice)
            expect(cost.bytesToDevice).toBe(partial)
          }
        })
      }
    }
    it(`${name} on three devices: each gets the partials of the two others`, async () => {
      for (const cost of await crossings([a, b, c], 2, 'float32', 256, fused)) {
        expect(cost.maps).toBe(1)
        expect([cost.bytesToHost, cost.bytesToDevice]).toEqual([1024 + 8, 2048])
      }
    })
  }

  it('broadcast crosses once: off the source, onto the others', async () => {
    await launch({ ranks: 4, devices: [a, b] }, async ({ comm, device }) => {
      const x = Tensor.full([64], 1, { device })
      await device.sync()
      await comm.barrier()
      const before = [a.stats, b.stats]
      await comm.broadcast(x, { src: 3 })
      await comm.barrier()
      await device.sync()
      await comm.barrier()
      expect([since(a, before[0]!), since(b, before[1]!)].map((cost) => [cost.bytesToHost - 8, cost.bytesToDevice])).toEqual([
        [0, 256],
        [256, 0],
      ])
    })
  })
})

describe('stats of a communicator', () => {
  it('counts collectives on tensors, those fused, and the bytes brought', async () => {
    const found = await launch({ ranks: 2, device: a }, async ({ comm, device, rank }) => {
      const x = Tensor.full([2, 8], 1, { device })
      const [residual, weight] = [Tensor.full([2, 8], 1, { device }), Tensor.full([8], 1, { device })]
      await comm.barrier()
      await comm.allocate([4])
      await comm.allReduce(x)
      await comm.allReduceResidualBiasRMSNorm({ x, residual, weight })
      await comm.broadcast(x, { src: 1 })
      await expect(comm.allReduce(x, { op: 'median' as 'sum' })).rejects.toThrow()
      const { collectives, fused, bytes } = comm.stats()
      return { collectives, fused, bytes, rank }
    })
    expect(found).toEqual([
      { collectives: 3, fused: 1, bytes: 128, rank: 0 },
      { collectives: 3, fused: 1, bytes: 192, rank: 1 },
    ])
  })
})

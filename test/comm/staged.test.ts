// Groups with CPU devices: the bits that a group of WebGPU devices gives, which backend a group takes, what it refuses, and how it ends.
import { afterAll, describe, expect, it, vi } from 'vitest'
import { Communicator, createDeviceComm, type DeviceBackend } from '../../runtime/comm/communicator.ts'
import type { ReduceOp } from '../../runtime/comm/device-comm.ts'
import { WireHostComm } from '../../runtime/comm/wire-host.ts'
import { type DType, encode } from '../../runtime/core/dtype.ts'
import { OutOfMemoryError, type RankmeshError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { nodesOf, slotsOf } from '../../runtime/core/tree.ts'
import type { CpuDevice } from '../../runtime/device/cpu/device.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { testDevice } from '../support/device.ts'
import { type MemoryWire, memoryWires } from '../support/memory-wire.ts'
import { codes, errorOf, outcomes, sleep } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'

const gpu = await testDevice()
const cpu = (await openDevice('cpu')) as CpuDevice
afterAll(() => {
  gpu.dispose()
  cpu.dispose()
})

const drawn = seed()
const GROUPS: Record<string, readonly Device[]> = {
  webgpu: [gpu, gpu, gpu, gpu],
  cpu: [cpu, cpu, cpu, cpu],
  'webgpu, webgpu, webgpu, cpu': [gpu, gpu, gpu, cpu],
}

/** The bytes that each kind of group gives, by its name, the same on all of its ranks. */
async function bitsOf(body: (context: RankContext) => Promise<Tensor>): Promise<Record<string, string>> {
  const found: Record<string, string> = {}
  for (const [name, devices] of Object.entries(GROUPS)) {
    const ranks = await launch({ ranks: 4, devices }, async (context) => {
      using y = await body(context)
      return Buffer.from(await y.bytes()).toString('hex')
    })
    expect(new Set(ranks).size, `${name}: ranks differ`).toBe(1)
    found[name] = ranks[0] as string
  }
  return found
}

describe(`the bits of a WebGPU group (seed ${drawn})`, () => {
  const random = new Random(drawn)
  const cases = (['sum', 'prod', 'min', 'max'] as const).flatMap((op: ReduceOp) =>
    (['float32', 'bfloat16', 'float16', 'int32', 'uint32'] as const).map((dtype: DType) => ({ op, dtype })),
  )
  it.each(cases)('allReduce $op of $dtype', async ({ op, dtype }) => {
    const whole = dtype === 'int32' || dtype === 'uint32'
    const draw = (): number => (whole ? random.bits() >>> 1 : (random.uniform() - 0.5) * 2 ** random.int(6))
    const operands = Array.from({ length: 4 }, () => encode(dtype, Array.from({ length: 1003 }, draw)))
    const found = await bitsOf(async ({ comm, device, rank }) => {
      using x = Tensor.fromBytes(operands[rank] as Uint8Array, [17, 59], dtype, device)
      return comm.allReduce(x, { op })
    })
    expect(new Set(Object.values(found)).size, Object.keys(found).join(' | ')).toBe(1)
  })

  it('allReduceTree, cut evenly and unevenly', async () => {
    const [blocks, count] = [13, 64]
    const leaves = Array.from({ length: blocks }, () =>
      Float32Array.from({ length: count }, () => (random.uniform() - 0.5) * 2 ** random.int(9)),
    )
    /** Blocks [start, start + n) in the order of the tree. */
    const sumOf = (start: number, level: number): Float32Array => {
      const half = 2 ** (level - 1)
      if (level === 0) return leaves[start] as Float32Array
      const left = sumOf(start, level - 1)
      return start + half < blocks ? left.map((v, i) => v + (sumOf(start + half, level - 1)[i] as number)) : left
    }
    const wanted = Buffer.from(sumOf(0, 4).buffer as ArrayBuffer).toString('hex')
    for (const counts of [
      [4, 4, 4, 1],
      [1, 6, 0, 6],
      [13, 0, 0, 0],
      [3, 3, 3, 4],
    ]) {
      const spans = counts.map((n, rank) => ({ start: counts.slice(0, rank).reduce((a, b) => a + b, 0), count: n }))
      const slots = slotsOf(spans)
      const found = await bitsOf(async ({ comm, device, rank }) => {
        const sums = new Float32Array(slots * count)
        const nodes = nodesOf(spans[rank] as { start: number; count: number })
        for (const [slot, { start, level }] of nodes.entries()) sums.set(sumOf(start, level), slot * count)
        using x = Tensor.from(sums, { shape: [slots, count], device })
        return comm.allReduceTree(x, { tree: { spans }, shape: [count] })
      })
      for (const [name, bits] of Object.entries(found)) expect(bits, `${name}, blocks ${counts}`).toBe(wanted)
    }
  })
})

it('a sum of no elements by the tree', async () => {
  const spans = [1, 1, 2].map((count, rank) => ({ start: rank, count }))
  const shapes = await launch({ ranks: 3, devices: [gpu, gpu, cpu] }, async ({ comm, device }) => {
    using x = Tensor.zeros([2, 0], { device })
    using y = await comm.allReduceTree(x.narrow(0, 0, 1), { tree: { spans }, shape: [0] })
    return y.shape
  })
  expect(shapes).toEqual([[0], [0], [0]])
})

describe('which backend', () => {
  it('a group takes the one that suits its devices, and says so', async () => {
    const about = async (devices: readonly Device[]): Promise<string> =>
      (await launch({ ranks: devices.length, devices }, ({ comm }) => comm.describe()))[0] as string
    expect(await about([gpu, gpu])).toContain('reductions on-device')
    expect(await about([cpu, cpu])).toBe(`2 ranks on ${cpu.description}: reductions on-device, shared out among the ranks' threads`)
    expect(await about([gpu, cpu, cpu])).toBe(`3 ranks (1 on ${gpu.description}, 2 on ${cpu.description}): reductions in host memory`)
  })

  it('the parts of a mixed group that are on one device take its backend', async () => {
    const found = await launch({ ranks: 4, devices: [gpu, cpu] }, async ({ comm, device, rank }) => {
      const part = (await comm.split({ color: Math.floor(rank / 2) })) as Communicator
      using x = Tensor.full([5], rank + 1, { device })
      using y = await part.allReduce(x)
      return { about: part.describe(), sum: await y.narrow(0, 0, 1).item(), at: [comm.deviceRank, comm.deviceSize] }
    })
    expect(found.map(({ sum }) => sum)).toEqual([3, 3, 7, 7])
    expect(found.map(({ about }) => about.includes('on-device'))).toEqual([true, true, true, true])
    expect(found.map(({ about }) => about.includes(cpu.description))).toEqual([false, false, true, true])
    expect(found.map(({ at }) => at)).toEqual([
      [0, 2],
      [1, 2],
      [0, 2],
      [1, 2],
    ])
  })

  it('by name: cpu, hybrid, or an error that says what it needs', async () => {
    const made = await launch({ ranks: 2, devices: [gpu, cpu] }, async ({ host, device }) => {
      const comm = await createDeviceComm('hybrid', { host, device })
      using x = Tensor.full([3], 2, { device })
      using y = await comm.allReduce(x)
      return [...((await y.data()) as Float32Array)]
    })
    expect(made).toEqual([
      [4, 4, 4],
      [4, 4, 4],
    ])
    const errors = await launch({ ranks: 1, devices: [gpu] }, async ({ host, device }) => [
      await errorOf(createDeviceComm('cpu', { host, device })),
      await errorOf(createDeviceComm('hybrid', { host, device: {} as Device })),
      await errorOf(createDeviceComm('cuda' as DeviceBackend, { host, device })),
    ])
    expect(codes(errors[0] as RankmeshError[])).toEqual(['ERR_ARGUMENT', 'ERR_ARGUMENT', 'ERR_BACKEND_UNAVAILABLE'])
  })

  it('refuses algorithms of other devices', async () => {
    const found = await launch({ ranks: 2, device: cpu }, async ({ comm, device }) => {
      using input = Tensor.zeros([2, 8], { device })
      const { code } = await errorOf(comm.allReduce(input, { algorithm: 'two-shot' }))
      using y = await comm.allReduce(input, { algorithm: 'on-device' })
      return [code, y.size]
    })
    for (const one of found) expect(one).toEqual(['ERR_ARGUMENT', 16])
  })
})

describe('calls', () => {
  it('that are under way together run in their order, each with its operand as it was', async () => {
    await launch({ ranks: 3, devices: [cpu, cpu, gpu] }, async ({ comm, device, rank }) => {
      using x = Tensor.full([9], rank + 1, { device })
      const started = Array.from({ length: 6 }, (_, i) => (i % 2 ? comm.allGather(x) : comm.allReduce(x)))
      const sums = await Promise.all(started)
      for (const [i, y] of sums.entries()) {
        expect(y.size).toBe(i % 2 ? 27 : 9)
        expect((await y.data())[0]).toBe(i % 2 ? 1 : 6)
        y.dispose()
      }
    })
  })

  it('use an operand that is disposed meanwhile, and give no result that can be written', async () => {
    const before = cpu.memory.liveBlocks
    await launch({ ranks: 2, device: cpu }, async ({ comm, device, rank }) => {
      const x = Tensor.full([100], rank + 1, { device })
      const pending = comm.allReduce(x)
      x.dispose()
      using y = await pending
      expect((await y.data())[99]).toBe(3)
      expect(() => y.set(Array(100).fill(0))).toThrow(expect.objectContaining({ code: 'ERR_DEVICE' }))
    })
    expect(cpu.memory.liveBlocks).toBe(before)
  })

  it('count what crosses a wire, and nothing within a thread', async () => {
    const body = async ({ comm, device }: Pick<RankContext, 'comm' | 'device'>): Promise<number[]> => {
      using x = Tensor.zeros([100], { device })
      using y = await comm.allReduce(x)
      using z = await comm.broadcast(y)
      await comm.barrier()
      const { collectives, bytes, crossings, hostBytes } = comm.stats()
      return [z.size, collectives, bytes, crossings, hostBytes]
    }
    const local = await launch({ ranks: 2, device: cpu }, body)
    expect(local).toEqual([
      [100, 2, 800, 0, 0],
      [100, 2, 400, 0, 0],
    ])
    const apart = await over([cpu, cpu], body)
    expect(apart.results).toEqual([
      [100, 2, 800, 2, 800],
      [100, 2, 400, 2, 400],
    ])
  })
})

interface Site {
  rank: number
  comm: Communicator
  device: Device
  wire: MemoryWire
}

/** Runs `main` on each rank of a wire; a rank that throws is no more. */
async function over<T>(
  devices: readonly CpuDevice[],
  main: (site: Site) => Promise<T>,
): Promise<{ results: (T | undefined)[]; errors: (RankmeshError | undefined)[] }> {
  const results: (T | undefined)[] = devices.map(() => undefined)
  const errors: (RankmeshError | undefined)[] = devices.map(() => undefined)
  await Promise.all(
    memoryWires(devices.length, { seed: drawn }).map(async (wire) => {
      const device = (devices[wire.rank] as CpuDevice).view()
      try {
        const comm = await Communicator.create(new WireHostComm(wire, 5000), device)
        results[wire.rank] = await main({ rank: wire.rank, comm, device, wire })
        comm.destroy()
      } catch (error) {
        errors[wire.rank] = error as RankmeshError
        wire.die(String(error))
      }
    }),
  )
  return { results, errors }
}

describe('failures', () => {
  it("a rank's own bad arguments: told to all, and the group goes on", async () => {
    const body = async ({ rank, comm, device }: Pick<RankContext, 'rank' | 'comm' | 'device'>): Promise<[RankmeshError, number]> => {
      using bad = Tensor.zeros([3])
      using x = Tensor.full([3], 1, { device })
      const error = await errorOf(comm.allReduce(rank === 1 ? bad : x))
      using y = await comm.allReduce(x)
      return [error, (await y.data())[0] as number]
    }
    for (const found of [await launch({ ranks: 3, devices: [cpu, cpu, gpu] }, body), (await over([cpu, cpu, cpu], body)).results]) {
      expect(found.map((one) => one?.[0].code)).toEqual(['ERR_COLLECTIVE_MISMATCH', 'ERR_DEVICE', 'ERR_COLLECTIVE_MISMATCH'])
      expect(found.map((one) => one?.[1])).toEqual([3, 3, 3])
    }
  })

  it('a rank that cannot hold the result, once all have joined: over a wire that ends the group', async () => {
    const { errors } = await over([cpu, cpu], async ({ rank, comm, device }) => {
      using x = Tensor.full([64], 1, { device })
      if (rank === 1)
        vi.spyOn(device, 'allocate').mockImplementation(() => {
          throw new OutOfMemoryError('no memory is left, says the test')
        })
      using y = await comm.allReduce(x)
      await comm.barrier()
      return y.size
    })
    expect(codes(errors)).toEqual(['ERR_RANK_FAILED', 'ERR_OUT_OF_MEMORY'])
    expect(errors[0]?.rank).toBe(1)
  })

  it('within a thread all ranks hear of it, nothing is left over, and the group goes on', async () => {
    const before = cpu.memory.liveBlocks
    const found = await launch({ ranks: 3, device: cpu }, async ({ rank, comm, device }) => {
      using x = Tensor.full([63], 1, { device })
      const spy = rank === 2 ? vi.spyOn(device, 'allocate') : null
      spy?.mockImplementationOnce(() => {
        throw new OutOfMemoryError('no memory is left, says the test')
      })
      const { code } = await errorOf(comm.reduceScatter(x))
      spy?.mockRestore()
      using y = await comm.allReduce(x)
      return [code, (await y.data())[0]]
    })
    expect(found).toEqual(Array(3).fill(['ERR_OUT_OF_MEMORY', 3]))
    expect(cpu.memory.liveBlocks).toBe(before)
  })

  it('a CPU device that is disposed: ERR_DEVICE in the calls of its ranks', async () => {
    const device = (await openDevice('cpu')) as CpuDevice
    const { errors } = await outcomes({ ranks: 2, device }, async ({ comm, device: own, rank }) => {
      using x = Tensor.full([8], 1, { device: own })
      using y = await comm.allReduce(x)
      await y.data()
      if (rank === 0) device.dispose()
      await comm.allReduce(x)
    })
    expect(codes(errors)).toEqual(['ERR_DEVICE', 'ERR_DEVICE'])
  })

  it('a GPU that is disposed ends a mixed group at once', async () => {
    const own = await testDevice()
    const { errors, ms } = await outcomes({ ranks: 2, devices: [own, cpu] }, async ({ comm, rank }) => {
      await comm.barrier()
      if (rank === 0) {
        await sleep(5)
        own.dispose()
        await sleep(20)
      }
      await comm.barrier()
    })
    expect(codes(errors)).toEqual(['ERR_DEVICE', 'ERR_DEVICE'])
    expect(ms).toBeLessThan(2000)
  })

  it('abort and destroy end a mixed group as they end any other', async () => {
    const { errors } = await outcomes({ ranks: 3, devices: [gpu, cpu, cpu] }, async ({ comm, device, rank }) => {
      using x = Tensor.full([8], 1, { device })
      if (rank === 2) comm.abort(new Error('enough'))
      await comm.allReduce(x)
    })
    expect(codes(errors)).toEqual(Array(3).fill('ERR_RANK_FAILED'))
    await launch({ ranks: 2, devices: [gpu, cpu] }, async ({ comm, device, host, rank }) => {
      const own = (await comm.split({ color: 0 })) as Communicator
      if (rank === 1) own.destroy()
      using x = Tensor.full([8], 1, { device })
      expect((await errorOf(own.allReduce(x))).code).toBe(rank === 1 ? 'ERR_ARGUMENT' : 'ERR_RANK_FAILED')
      await host.barrier()
    })
  })
})

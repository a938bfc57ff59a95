// Collectives of CPU ranks in one thread: the bits that go through host memory, the order among commands whose threads run at speeds of their
// own, ranks and devices that fail in the middle, and what is counted.
import { afterAll, describe, expect, it } from 'vitest'
import type { DeviceComm, ReduceOp } from '../../runtime/comm/device-comm.ts'
import { EngineComm } from '../../runtime/comm/engine/comm.ts'
import type { GroupHost } from '../../runtime/comm/host.ts'
import { StagedComm } from '../../runtime/comm/staged/comm.ts'
import type { Engine, EngineQueue } from '../../runtime/core/addon.ts'
import { type DType, encode } from '../../runtime/core/dtype.ts'
import { type Shape, sizeOf } from '../../runtime/core/shape.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { slotsOf } from '../../runtime/core/tree.ts'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { cpuDevices, reason } from '../support/cpu.ts'
import { codes, errorOf, outcomes, sleep } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'

const drawn = seed()
const FLOATS: readonly DType[] = ['float32', 'bfloat16', 'float16']

/** Values of many magnitudes, and in floats now and then none at all. */
function draw(random: Random, dtype: DType, size: number): Uint8Array {
  const whole = dtype === 'int32' || dtype === 'uint32'
  const special = [Number.NaN, -0, 0, Number.POSITIVE_INFINITY]
  const value = (): number => {
    if (whole) return random.bits() | 0
    return random.int(200) === 0 ? (special[random.int(4)] as number) : (random.uniform() - 0.5) * 2 ** (random.int(12) - 4)
  }
  return encode(dtype, Array.from({ length: size }, value))
}

interface Case {
  what: string
  /** Bytes for all ranks, then for each. */
  inputs: Record<string, { bytes: readonly Uint8Array[]; shape: Shape; dtype: DType }>
  /** What of it each rank compares. */
  run(comm: DeviceComm, x: Record<string, Tensor>): Promise<Tensor[]>
}

function cases(random: Random, ranks: number): Case[] {
  const each = (dtype: DType, shape: Shape): Case['inputs'][string] => {
    return { bytes: Array.from({ length: ranks }, () => draw(random, dtype, sizeOf(shape))), shape, dtype }
  }
  const alike = (dtype: DType, shape: Shape): Case['inputs'][string] => {
    const bytes = encode(
      dtype,
      Array.from({ length: sizeOf(shape) }, () => random.normal()),
    )
    return { bytes: Array(ranks).fill(bytes), shape, dtype }
  }
  const sums = (['sum', 'prod', 'min', 'max', 'avg'] as ReduceOp[]).flatMap((op) =>
    [...FLOATS, 'int32' as const, 'uint32' as const]
      .filter((dtype) => op !== 'avg' || FLOATS.includes(dtype))
      .flatMap((dtype): Case[] => [
        {
          what: `allReduce ${op} ${dtype}`,
          inputs: { x: each(dtype, [3, 5557]) },
          run: async (comm, { x }) => [await comm.allReduce(x as Tensor, { op })],
        },
        {
          what: `reduceScatter ${op} ${dtype}`,
          inputs: { x: each(dtype, [5, 7 * ranks, 3]) },
          run: async (comm, { x }) => [await comm.reduceScatter(x as Tensor, { dim: 1, op })],
        },
      ]),
  )
  const fused = FLOATS.flatMap((type) =>
    [1, 5].map((rows): Case => {
      const n = 1 + random.int(3000)
      const [xType, zeroCentered, bias] = [FLOATS[random.int(3)] as DType, random.int(2) === 1, random.int(2) === 1]
      return {
        what: `fused norm [${rows}, ${n}] ${xType} to ${type}${bias ? ', bias' : ''}${zeroCentered ? ', zeroCentered' : ''}`,
        inputs: { x: each(xType, [rows, n]), residual: alike(type, [rows, n]), weight: alike(type, [n]), bias: alike(type, [n]) },
        async run(comm, { x, residual, weight, bias: added }) {
          const args = { x, residual, weight, zeroCentered, ...(bias && { bias: added }) } as Parameters<
            DeviceComm['allReduceResidualBiasRMSNorm']
          >[0]
          return [await comm.allReduceResidualBiasRMSNorm(args), (residual as Tensor).share()]
        },
      }
    }),
  )
  const counts = Array.from({ length: ranks }, () => random.int(9))
  const spans = counts.map((count, rank) => ({ count, start: counts.slice(0, rank).reduce((a, b) => a + b, 0) }))
  const slots = slotsOf(spans)
  const tree: Case[] = [
    {
      what: `allReduceTree ${counts}`,
      inputs: { x: each('float32', [slots, 4, 77]) },
      run: async (comm, { x }) => [await comm.allReduceTree(x as Tensor, { tree: { spans }, shape: [4, 77] })],
    },
    {
      what: `fused norm by the tree ${counts}`,
      inputs: { x: each('float32', [slots, 4, 77]), residual: alike('float32', [4, 77]), weight: alike('float32', [77]) },
      async run(comm, { x, residual, weight }) {
        const args = { x, residual, weight, tree: { spans } } as Parameters<DeviceComm['allReduceResidualBiasRMSNorm']>[0]
        return [await comm.allReduceResidualBiasRMSNorm(args), (residual as Tensor).share()]
      },
    },
  ]
  return [...sums, ...fused, ...tree]
}

/** NaN has many patterns of bits, of which a reader sees none. */
async function seen(tensor: Tensor): Promise<string> {
  if (!FLOATS.includes(tensor.dtype)) return Buffer.from(await tensor.bytes()).toString('hex')
  const values = (await tensor.data()) as Float32Array
  return Buffer.from(values.map((value) => (Number.isNaN(value) ? Number.NaN : value)).buffer as ArrayBuffer).toString('hex')
}

describe.each(cpuDevices())(`$name (seed ${drawn})`, ({ open }) => {
  const device = open()
  afterAll(() => device.dispose())

  it.each([2, 3, 4])('%i ranks: the bits that go through host memory', async (ranks) => {
    const all = cases(new Random(drawn + ranks), ranks)
    await launch({ ranks, device }, async ({ host, device, rank }) => {
      const own = await EngineComm.create(host as GroupHost, device)
      const staged = await StagedComm.create(host as GroupHost, device)
      for (const one of all) {
        const found: string[][] = []
        for (const comm of [own, staged]) {
          const inputs = Object.entries(one.inputs).map(([name, { bytes, shape, dtype }]) => {
            return [name, Tensor.fromBytes(bytes[rank] as Uint8Array, shape, dtype, device)] as const
          })
          const results = await one.run(comm, Object.fromEntries(inputs))
          found.push(await Promise.all(results.map(seen)))
          for (const tensor of [...results, ...inputs.map(([, tensor]) => tensor)]) tensor.dispose()
        }
        expect(found[0], `${one.what}, rank ${rank}`).toEqual(found[1])
      }
    })
  })
})

/** Holds a rank's thread up by products that nobody waits for: `work` times some ten microseconds, recorded at once. */
function delays(device: Device): { by(work: number): void } & Disposable {
  const x = Tensor.full([16, 512], 1, { device })
  const w = Tensor.full([512, 512], 1, { device })
  const out = Tensor.full([16, 512], 1, { device })
  return {
    by: (work) => {
      for (let i = 0; i < work; i++) device.matmul(x, w, { out })
    },
    [Symbol.dispose]: () => {
      for (const tensor of [x, w, out]) tensor.dispose()
    },
  }
}

describe(`order (seed ${drawn})`, () => {
  it.each([2, 3, 5])('%i ranks, each late at other times: what is recorded in one order has one result', async (ranks) => {
    using device = (await openDevice('cpu')) as CpuDevice
    const [steps, n] = [200, 130]
    const plan = new Random(drawn)
    const late = Array.from({ length: steps }, () => Array.from({ length: ranks }, () => (plan.int(4) === 0 ? plan.int(8) : 0)))
    const pauses = Array.from({ length: steps }, () => Array.from({ length: ranks }, () => plan.int(100) === 0))
    const kinds = Array.from({ length: steps }, () => plan.int(4))
    /** Each rank's number; sums wrap, so that none is lost. */
    let wanted = Array.from({ length: ranks }, (_, rank) => rank + 1)
    for (const kind of kinds) {
      const before = wanted
      const sum = before.reduce((a, b) => (a + b) | 0, 0)
      wanted = before.map((own, rank) => {
        const y = [sum, before[0] as number, before.at(-1) as number, (own + sum) | 0][kind] as number
        return (y + rank + 1) | 0
      })
    }
    const found = await launch({ ranks, device }, async ({ comm, device, rank }) => {
      using delay = delays(device)
      using own = Tensor.full([n], rank + 1, { dtype: 'int32', device })
      using shared = await comm.allocate([n], { dtype: 'int32', shared: true })
      let x = own.share()
      for (const [step, kind] of kinds.entries()) {
        delay.by(late[step]?.[rank] as number)
        if (pauses[step]?.[rank]) await sleep(1)
        const next = await stepOf(kind)
        x.dispose()
        x = device.add(next, own)
        next.dispose()
      }
      const values = [...((await x.data()) as Int32Array)]
      x.dispose()
      return values

      async function stepOf(kind: number): Promise<Tensor> {
        if (kind === 1) return comm.broadcast(x)
        if (kind === 2) {
          using all = await comm.allGather(x)
          return all.narrow(0, (ranks - 1) * n, n)
        }
        // The result is in memory that all ranks read, and that a later step writes again.
        await comm.allReduce(x, { out: shared })
        if (kind === 3) return device.add(x, shared)
        const copy = Tensor.empty([n], { dtype: 'int32', device })
        device.copy(shared, copy)
        return copy
      }
    })
    for (const [rank, values] of found.entries()) expect(values, `rank ${rank}`).toEqual(Array(n).fill(wanted[rank]))
  })

  it('collectives that are under way together, beside some that go through host memory', async () => {
    using device = (await openDevice('cpu')) as CpuDevice
    const before = device.memory.liveBlocks
    await launch({ ranks: 3, device }, async ({ comm, device, rank }) => {
      using delay = delays(device)
      using x = Tensor.full([4, 6], rank + 1, { device })
      const started: Promise<Tensor>[] = []
      for (let i = 0; i < 5; i++) {
        delay.by((7 * i + 4 * rank) % 12)
        started.push(
          i % 5 === 3
            ? comm.allToAll(x, { splits: [2, 1, 1] })
            : i % 5 === 1
              ? comm.allGather(x)
              : comm.allReduce(x, { out: i % 5 === 4 ? x : undefined }),
        )
      }
      const results = await Promise.all(started)
      const values = await Promise.all(results.map((y) => y.data()))
      expect(Array.from(values[0] as Float32Array)).toEqual(Array(24).fill(6))
      expect(Array.from(values[1] as Float32Array).slice(0, 18)).toEqual([...Array(6).fill(1), ...Array(6).fill(2), ...Array(6).fill(3)])
      // What the ranks brought before the last one wrote over it.
      const rows = rank === 0 ? 2 : 1
      expect(Array.from(values[3] as Float32Array)).toEqual([1, 2, 3].flatMap((value) => Array(rows * 6).fill(value)))
      expect(Array.from(values[4] as Float32Array)).toEqual(Array(24).fill(6))
      for (const y of results) if (y !== x) y.dispose()
    })
    expect(device.memory.liveBlocks).toBe(before)
  })

  it('64 ranks on the threads that there are', async () => {
    using device = (await openDevice('cpu')) as CpuDevice
    const found = await launch({ ranks: 64, device }, async ({ comm, device, rank }) => {
      let x = Tensor.full([100], rank, { device })
      for (let i = 0; i < 5; i++) {
        using mean = await comm.allReduce(x, { op: 'avg' })
        const next = device.add(mean, mean)
        x.dispose()
        x = next
      }
      return ((await x.data()) as Float32Array)[99]
    })
    expect(found).toEqual(Array(64).fill(31.5 * 32))
  })
})

describe('failures', () => {
  it('a rank that throws while others wait for it: they hear of it, and the device goes on', async () => {
    using device = (await openDevice('cpu')) as CpuDevice
    const before = device.memory.liveBlocks
    const { errors, ms } = await outcomes({ ranks: 3, device }, async ({ comm, device, rank }) => {
      using delay = delays(device)
      using x = Tensor.full([64], 1, { device })
      delay.by(20)
      using y = await comm.allReduce(x)
      if (rank === 1) throw new Error('enough')
      using z = await comm.allReduce(y)
      await z.data()
    })
    expect(codes(errors)).toEqual(['ERR_RANK_FAILED', 'Error', 'ERR_RANK_FAILED'])
    expect(ms).toBeLessThan(20_000)
    expect(device.memory.liveBlocks).toBe(before)
    const sums = await launch({ ranks: 3, device }, async ({ comm, device }) => {
      using x = Tensor.full([64], 1, { device })
      using y = await comm.allReduce(x)
      return ((await y.data()) as Float32Array)[63]
    })
    expect(sums).toEqual([3, 3, 3])
  })

  // Loops without the addon run each command at once, so that nothing is ever under way.
  it.skipIf(reason).each([0, 1, 2])(
    `a device that is disposed while its ranks are at work, by rank %i: nobody waits for ever${reason}`,
    async (who) => {
      const device = (await openDevice('cpu')) as CpuDevice
      const { errors, ms } = await outcomes({ ranks: 3, device }, async ({ comm, device: own, rank }) => {
        using delay = delays(own)
        using x = Tensor.full([64], 1, { device: own })
        for (let i = 0; i < 100; i++) {
          delay.by(rank === who ? 50 : 0)
          ;(await comm.allReduce(x)).dispose()
        }
        const read = x.data()
        await sleep(rank === who ? 3 : 0)
        if (rank === who) device.dispose()
        await read
        await own.sync()
      })
      expect(codes(errors)).toEqual(['ERR_DEVICE', 'ERR_DEVICE', 'ERR_DEVICE'])
      expect(ms).toBeLessThan(20_000)
    },
  )

  it('operands of another device, and results that nobody may write', async () => {
    using device = (await openDevice('cpu')) as CpuDevice
    using other = (await openDevice('cpu')) as CpuDevice
    const found = await launch({ ranks: 2, device }, async ({ comm, device }) => {
      using foreign = Tensor.zeros([4], { device: other })
      using x = Tensor.zeros([4], { device })
      const error = await errorOf(comm.allReduce(foreign))
      using y = await comm.allReduce(x)
      expect(() => device.copy(x, y)).toThrow(expect.objectContaining({ code: 'ERR_DEVICE' }))
      return error.code
    })
    expect(found).toEqual(['ERR_DEVICE', 'ERR_DEVICE'])
  })
})

/** An engine whose queues take commands and never run them. */
function stuckEngine(): Engine {
  let made = 0
  const queue = (id: number): EngineQueue => {
    return { id, submit() {}, finish: () => new Promise(() => {}), measure() {}, measured: () => [], close() {} }
  }
  return {
    kernels: 'nothing',
    allocate: (byteLength) => ({ id: made++, buffer: new ArrayBuffer(byteLength) }),
    free() {},
    createQueue: () => queue(made++),
  }
}

describe('what it says, and what it does not wait for', () => {
  it('none of them waits for a thread', async () => {
    using device = CpuDevice.open(stuckEngine())
    const ended = await launch({ ranks: 3, device, timeoutMs: 5000 }, async ({ comm, device }) => {
      using x = Tensor.zeros([6, 12], { device })
      using weight = Tensor.zeros([12], { device })
      using residual = await comm.allocate([6, 12], { shared: true })
      const tree = { spans: [0, 1, 2].map((start) => ({ start, count: 1 })) }
      const done = [
        await comm.allReduce(x),
        await comm.allReduceTree(x, { tree, shape: [6, 12] }),
        await comm.allReduceResidualBiasRMSNorm({ x, residual, weight }),
        await comm.allGather(x),
        await comm.allGatherV(x, { dim: 1 }),
        await comm.gather(x),
        await comm.broadcast(x),
        await comm.broadcast(x, { inPlace: true }),
        await comm.reduce(x),
        await comm.reduceScatter(x),
        await comm.reduceScatterV(x, { dim: 0, sizes: [1, 0, 5] }),
      ]
      for (const y of done) if (y !== x) y?.dispose()
      return done.length
    })
    expect(ended).toEqual([11, 11, 11])
  })

  it('counts collectives, and nothing that crosses', async () => {
    using device = (await openDevice('cpu')) as CpuDevice
    const found = await launch({ ranks: 2, device }, async ({ comm, device }: RankContext) => {
      using x = Tensor.zeros([2, 8], { device })
      using weight = Tensor.zeros([8], { device })
      using residual = Tensor.zeros([2, 8], { device })
      ;(await comm.allReduce(x)).dispose()
      ;(await comm.allGather(x)).dispose()
      ;(await comm.allReduceResidualBiasRMSNorm({ x, residual, weight })).dispose()
      const { collectives, fused, bytes, crossings, hostBytes } = comm.stats()
      return [comm.describe(), collectives, fused, bytes, crossings, hostBytes]
    })
    const about = `2 ranks on ${device.description}: reductions on-device, shared out among the ranks' threads`
    expect(found).toEqual(Array(2).fill([about, 3, 1, 192, 0, 0]))
  })
})

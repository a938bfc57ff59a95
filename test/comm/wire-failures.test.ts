// Groups over a wire when something goes wrong on one rank: every other rank hears of it, nobody hangs, nothing is left over.
import { expect, it } from 'vitest'
import { Communicator } from '../../runtime/comm/communicator.ts'
import { WireHostComm } from '../../runtime/comm/wire-host.ts'
import { OutOfMemoryError, type RankmeshError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { testDevice } from '../support/device.ts'
import { type MemoryWire, memoryWires } from '../support/memory-wire.ts'
import { codes, errorOf, sleep } from '../support/outcomes.ts'
import { seed } from '../support/random.ts'

interface Site {
  rank: number
  comm: Communicator
  device: WebGpuDevice
  wire: MemoryWire
}

const RANKS = 3
const drawn = seed()

/** Runs `main` on each rank, each with a GPU of its own, and gives what each returned or threw. A rank that throws is no more. */
async function sites<T>(
  main: (site: Site) => Promise<T>,
  timeoutMs = 5000,
): Promise<{ results: (T | undefined)[]; errors: RankmeshError[] }> {
  const devices = await Promise.all(Array.from({ length: RANKS }, testDevice))
  const results: (T | undefined)[] = []
  const errors: RankmeshError[] = []
  await Promise.all(
    memoryWires(RANKS, { seed: drawn }).map(async (wire) => {
      const device = devices[wire.rank]!
      try {
        const comm = await Communicator.create(new WireHostComm(wire, timeoutMs), device)
        results[wire.rank] = await main({ rank: wire.rank, comm, device, wire })
        comm.destroy()
      } catch (error) {
        errors[wire.rank] = error as RankmeshError
        wire.die(String(error))
      }
    }),
  )
  for (const device of devices) {
    if (!device.failure) expect(device.gpu.pool.liveBuffers, 'buffers that nobody gave back').toBe(0)
    device.dispose()
  }
  return { results, errors }
}

const ones = (device: WebGpuDevice, n = 64): Tensor => Tensor.full([n], 1, { device })

/** The group works: every rank learns how many there are. */
async function works({ comm, device }: Site): Promise<void> {
  using x = ones(device)
  using y = await comm.allReduce(x)
  expect((await y.data())[63]).toBe(RANKS)
}

/** What a call that must fail threw, by rank; the group works afterwards. */
async function refusals(call: (site: Site, x: Tensor) => Promise<unknown>): Promise<RankmeshError[]> {
  const { results, errors } = await sites(async (site) => {
    using x = ones(site.device, 6)
    const error = await errorOf(call(site, x))
    await works(site)
    return error
  })
  expect(codes(errors)).toEqual([])
  return results as RankmeshError[]
}

it('calls that differ: ERR_COLLECTIVE_MISMATCH on every rank, and the group goes on', async () => {
  const errors = await refusals(({ comm, rank }, x) => (rank === 1 ? comm.allGather(x) : comm.allReduce(x)))
  expect(codes(errors)).toEqual(Array(RANKS).fill('ERR_COLLECTIVE_MISMATCH'))
  for (const { message, rank } of errors) {
    expect(message).toMatch(/rank 0 called allReduce.*rank 1 called allGather/)
    expect(rank).toBe(1)
  }
})

it('what only all payloads together show: ERR_COLLECTIVE_MISMATCH on every rank, and the group goes on', async () => {
  const rows = await refusals(({ comm, rank }, x) => comm.allToAll(x, rank === 2 ? { outputSplits: [1, 2, 3] } : {}))
  expect(codes(rows)).toEqual(Array(RANKS).fill('ERR_COLLECTIVE_MISMATCH'))
  expect(rows[0]!.message).toContain('Rank 2 of allToAll expects rows [1, 2, 3] but is sent [2, 2, 2]')
})

it('bad arguments of one rank: its own error there, ERR_COLLECTIVE_MISMATCH elsewhere, and the group goes on', async () => {
  const disposed = await refusals(({ comm, rank }, x) => {
    if (rank === 1) x.dispose()
    return comm.broadcast(x)
  })
  expect(disposed[1]!.code).not.toBe('ERR_COLLECTIVE_MISMATCH')
  const avg = await refusals(async ({ comm, rank, device }, x) => {
    using integers = Tensor.full([6], 1, { device, dtype: 'int32' })
    await comm.allReduce(rank === 2 ? integers : x, { op: 'avg' })
  })
  expect(codes(avg)).toEqual(['ERR_COLLECTIVE_MISMATCH', 'ERR_COLLECTIVE_MISMATCH', 'ERR_DTYPE'])
  for (const rank of [0, 2]) {
    expect(disposed[rank]!.code).toBe('ERR_COLLECTIVE_MISMATCH')
    expect(disposed[rank]!.message).toContain('Rank 1 could not take part in broadcast')
  }
})

it('messages: a mismatch or a refusal tells both ends, and the pair goes on', async () => {
  const { results, errors } = await sites(async ({ rank, comm, device }) => {
    if (rank === 1) return []
    using x = ones(device, 6)
    const found: unknown[] = []
    if (rank === 0) {
      found.push(await errorOf(comm.send(x, { dst: 2 })))
      const bad = Tensor.full([4], 1, { device })
      bad.dispose()
      found.push(await errorOf(comm.send(bad, { dst: 2 })))
      await Promise.all([comm.send(x, { dst: 2 }), comm.send(x, { dst: 2 })])
    } else {
      found.push(await errorOf(comm.recv([7], 'float32', { src: 0 })))
      found.push(await errorOf(comm.recv([4], 'float32', { src: 0 })))
      for (let i = 0; i < 2; i++) {
        using y = await comm.recv([6], 'float32', { src: 0 }) // one after the other, though they are sent at once
        expect([...((await y.data()) as Float32Array)]).toEqual(Array(6).fill(1))
      }
    }
    return found as RankmeshError[]
  })
  expect(codes(errors)).toEqual([])
  const [sent, , received] = results as [RankmeshError[], unknown, RankmeshError[]]
  expect(codes([sent[0], received[0], received[1]])).toEqual(Array(3).fill('ERR_COLLECTIVE_MISMATCH'))
  expect(received[0]!.message).toMatch(/rank 0 called send\(0 → 2, \[6\] float32\), rank 2 called send\(0 → 2, \[7\] float32\)/)
  expect(received[1]!.message).toMatch(/^Rank 0 could not take part in send/)
  expect(sent[1]!.code).not.toBe('ERR_COLLECTIVE_MISMATCH')
})

it('a rank that does not come: ERR_TIMEOUT that names it', async () => {
  const started = performance.now()
  const { results } = await sites(async ({ rank, comm, device }) => {
    using x = ones(device)
    if (rank === 2) return sleep(400).then(() => errorOf(comm.allReduce(x)))
    return errorOf(comm.allReduce(x, { timeoutMs: 100 }))
  })
  expect(codes(results as RankmeshError[])).toEqual(Array(RANKS).fill('ERR_TIMEOUT'))
  for (const error of results) expect(error).toMatchObject({ rank: 2, message: expect.stringContaining('allReduce') })
  expect(performance.now() - started).toBeLessThan(4000)
})

it('a rank that fails: ERR_RANK_FAILED in pending and later calls of the others', async () => {
  const { errors } = await sites(async ({ rank, comm, device }) => {
    using x = ones(device)
    if (rank === 1) {
      await sleep(10)
      throw new Error('a bug')
    }
    const pending = await Promise.all([errorOf(comm.allReduce(x)), errorOf(comm.recv([1], 'float32', { src: 1 }))])
    expect(codes([...pending, await errorOf(comm.barrier())])).toEqual(Array(3).fill('ERR_RANK_FAILED'))
    throw pending[0]
  })
  for (const rank of [0, 2]) expect(errors[rank]).toMatchObject({ rank: 1, message: expect.stringContaining('a bug') })
})

it('a rank that aborts: everybody hears of it, other groups go on', async () => {
  const { results, errors } = await sites(async (site) => {
    const { rank, comm, device } = site
    const part = (await comm.split({ color: 0 }))!
    using x = ones(device)
    if (rank === 0) {
      await sleep(10)
      part.abort(new Error('enough'))
    }
    const error = await errorOf(part.allReduce(x))
    await works(site)
    part.destroy()
    return error
  })
  expect(codes(errors)).toEqual([])
  expect(codes(results as RankmeshError[])).toEqual(Array(RANKS).fill('ERR_RANK_FAILED'))
  for (const error of results) expect(error).toMatchObject({ rank: 0, message: expect.stringContaining('enough') })
})

it('a signal that aborts: its reason there, ERR_RANK_FAILED elsewhere', async () => {
  const { results } = await sites(async ({ rank, comm, device }) => {
    using x = ones(device)
    if (rank === 1) return errorOf(comm.allReduce(x, { signal: AbortSignal.abort(new RangeError('stop')) }))
    return errorOf(comm.allReduce(x))
  })
  expect(codes(results as RankmeshError[])).toEqual(['ERR_RANK_FAILED', 'RangeError', 'ERR_RANK_FAILED'])
})

for (const [how, end] of Object.entries({
  disposed: (device: WebGpuDevice): void => device.dispose(),
  lost: (device: WebGpuDevice): void => device.gpu.device.destroy(),
})) {
  for (const when of ['before', 'during'] as const) {
    it(`a device that is ${how} ${when} an exchange: ERR_DEVICE there, ERR_RANK_FAILED elsewhere`, async () => {
      const started = performance.now()
      const { results } = await sites(async (site) => {
        const { rank, comm, device } = site
        await works(site)
        using x = ones(device, 4096)
        if (when === 'before' && rank === 1) {
          await sleep(5)
          end(device)
          await sleep(20)
        }
        const pending = errorOf(comm.allReduce(x))
        if (when === 'during' && rank === 1) end(device)
        const error = await pending
        expect((await errorOf(comm.barrier())).code).toBe(error.code)
        await sleep(30) // nobody ends before all have heard of it
        return error
      })
      const errors = results as RankmeshError[]
      expect(codes(errors)).toEqual(['ERR_RANK_FAILED', 'ERR_DEVICE', 'ERR_RANK_FAILED'])
      for (const rank of [0, 2]) expect(errors[rank]).toMatchObject({ rank: 1, message: expect.stringMatching(/^Rank 1 failed/) })
      expect(performance.now() - started).toBeLessThan(3000)
    })
  }
}

/** The allocations of a rank's collectives, from the n-th on, find no memory. */
function scarce({ gpu }: WebGpuDevice, n: number): void {
  const allocate = gpu.pool.allocateSlices.bind(gpu.pool)
  let left = n
  gpu.pool.allocateSlices = (count, bytes) => {
    if (left-- > 0) return allocate(count, bytes)
    throw new OutOfMemoryError('no memory for this test')
  }
}

it('no memory for a collective on one rank: ERR_OUT_OF_MEMORY there, ERR_RANK_FAILED elsewhere, at whatever step', async () => {
  for (const algorithm of ['one-shot', 'two-shot'] as const) {
    for (const n of [0, 1]) {
      const { results } = await sites(async ({ rank, comm, device }) => {
        using x = ones(device, 64)
        if (rank === 0) scarce(device, n)
        // Those who have all bytes before it fails hear of it in their next call.
        const both = comm.allReduce(x, { algorithm, op: 'max' }).then((y) => {
          y.dispose()
          return comm.barrier()
        })
        const error = await errorOf(both)
        expect((await errorOf(comm.barrier())).code).toBe('ERR_RANK_FAILED')
        await sleep(30) // nobody ends before all have heard of it
        return error
      })
      const errors = results as RankmeshError[]
      expect(codes(errors), `${algorithm}, allocation ${n}`).toEqual(['ERR_OUT_OF_MEMORY', 'ERR_RANK_FAILED', 'ERR_RANK_FAILED'])
      expect(errors[1]).toMatchObject({ rank: 0, message: expect.stringContaining('no memory for this test') })
    }
  }
})

it('no memory for allocate on one rank: its own affair', async () => {
  const { results, errors } = await sites(async (site) => {
    const limit = site.device.gpu.device.limits.maxStorageBufferBindingSize
    const both = await errorOf(site.comm.allocate([Math.ceil(limit / 2)]))
    const { allocateSlices } = site.device.gpu.pool
    if (site.rank === 1) scarce(site.device, 0)
    const code = await site.comm.allocate([8]).then(
      (tensor) => tensor.dispose(),
      (error: RankmeshError) => error.code,
    )
    site.device.gpu.pool.allocateSlices = allocateSlices
    await works(site)
    return [both.code, code]
  })
  expect(codes(errors)).toEqual([])
  expect(results).toEqual([0, 1, 2].map((rank) => ['ERR_OUT_OF_MEMORY', rank === 1 ? 'ERR_OUT_OF_MEMORY' : undefined]))
})

it('tensors disposed meanwhile count; a rank that leaves completes what it has joined', async () => {
  const { results, errors } = await sites(async ({ rank, comm, device }) => {
    const x = Tensor.full([64], rank, { device })
    if (rank === 2) await sleep(10)
    const under = [comm.allReduce(x), comm.allGather(x)]
    x.dispose()
    if (rank === 1) comm.destroy()
    const [sum, all] = await Promise.all(under)
    const data = [...((await sum!.data()) as Float32Array).slice(0, 1), ...((await all!.data()) as Float32Array).slice(-1)]
    sum!.dispose()
    all!.dispose()
    const later = await errorOf(comm.barrier())
    return [...data, later.code, later.rank]
  })
  expect(codes(errors)).toEqual([])
  const rest = [3, 2]
  expect(results).toEqual([
    [...rest, 'ERR_RANK_FAILED', 1],
    [...rest, 'ERR_ARGUMENT', undefined],
    [...rest, 'ERR_RANK_FAILED', 1],
  ])
})

it('a group of one gives its operand, and sends nothing', async () => {
  const [wire] = memoryWires(1) as [MemoryWire]
  const device = await testDevice()
  const comm = await Communicator.create(new WireHostComm(wire, 1000), device)
  using x = ones(device)
  using y = await comm.allReduce(x)
  expect(await y.bytes()).toEqual(await x.bytes())
  expect(comm.stats()).toMatchObject({ crossings: 0, hostBytes: 0 })
  comm.destroy()
  device.dispose()
})

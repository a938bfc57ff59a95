// launch: one call of main per rank, results in rank order, devices placed and given back, bad arguments refused before anything starts.
import { afterAll, describe, expect, it } from 'vitest'
import type { Communicator } from '../../runtime/comm/communicator.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { type LaunchOptions, launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { Mapping } from '../../runtime/scheduler/mapping.ts'
import { testDevice } from '../support/device.ts'
import { errorOf, sleep } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'

const [a, b, c] = [await testDevice(), await testDevice(), await testDevice()]
afterAll(() => {
  for (const device of [a, b, c]) device.dispose()
})

const gpuOf = (device: Device): unknown => (device as WebGpuDevice).gpu

/** Sums over a group, to see that it works: 1 from each of its ranks. */
async function sum(comm: Communicator, device: Device): Promise<number> {
  using x = Tensor.full([5], 1, { device })
  using y = await comm.allReduce(x)
  return (await y.data())[4] as number
}

describe('ranks', () => {
  for (const ranks of [1, 2, 7, 64]) {
    const start = seed()
    it(`${ranks}: results in rank order, whoever ends first (seed ${start})`, async () => {
      const random = new Random(start)
      const delays = Array.from({ length: ranks }, () => random.int(8))
      const found = await launch({ ranks, device: a }, async ({ rank, size, comm, host, device, signal }) => {
        await sleep(delays[rank]!)
        expect([comm.rank, comm.size, host.rank, host.size]).toEqual([rank, ranks, rank, ranks])
        expect([comm.deviceRank, comm.deviceSize]).toEqual([rank, ranks])
        expect(signal.aborted).toBe(false)
        return { rank, size, sum: await sum(comm, device) }
      })
      expect(found).toEqual(Array.from({ length: ranks }, (_, rank) => ({ rank, size: ranks, sum: ranks })))
    })
  }

  it('main need not be async, nor return anything', async () => {
    expect(await launch({ ranks: 3, device: a }, ({ rank }) => rank * rank)).toEqual([0, 1, 4])
    expect(await launch({ ranks: 2, device: a }, () => {})).toEqual([undefined, undefined])
  })
})

describe('bad arguments are refused before any rank starts', () => {
  const BAD: Record<string, { options: object | undefined; code: string; text: RegExp }> = {
    'no options': { options: undefined, code: 'ERR_ARGUMENT', text: /ranks/ },
    'no ranks': { options: {}, code: 'ERR_ARGUMENT', text: /ranks/ },
    '0 ranks': { options: { ranks: 0 }, code: 'ERR_ARGUMENT', text: /\[1, 64\].*0/ },
    '65 ranks': { options: { ranks: 65 }, code: 'ERR_ARGUMENT', text: /65/ },
    '1.5 ranks': { options: { ranks: 1.5 }, code: 'ERR_ARGUMENT', text: /1\.5/ },
    'ranks as text': { options: { ranks: '2' }, code: 'ERR_ARGUMENT', text: /"2"/ },
    'an unknown placement': { options: { ranks: 2, placement: 'cloud' }, code: 'ERR_ARGUMENT', text: /local, thread, process.*"cloud"/ },
    'a device of this thread for other threads': {
      options: { ranks: 2, placement: 'thread', device: a },
      code: 'ERR_ARGUMENT',
      text: /names/,
    },
    'a deadline of no length': { options: { ranks: 2, timeoutMs: 0 }, code: 'ERR_ARGUMENT', text: /timeoutMs/ },
    'a deadline that no timer takes': { options: { ranks: 2, timeoutMs: 2 ** 31 }, code: 'ERR_ARGUMENT', text: /timeoutMs/ },
    'an unknown kind of device': { options: { ranks: 2, device: 'abacus' }, code: 'ERR_ARGUMENT', text: /"abacus"/ },
    'a device that is not there': { options: { ranks: 2, device: 'webgpu:999' }, code: 'ERR_BACKEND_UNAVAILABLE', text: /adapter/ },
    'a kind of device that is not built': { options: { ranks: 2, device: 'cuda:0' }, code: 'ERR_BACKEND_UNAVAILABLE', text: /CUDA/ },
    'no device': { options: { ranks: 2, devices: [] }, code: 'ERR_ARGUMENT', text: /devices/ },
    'more devices than ranks': { options: { ranks: 2, devices: [a, b, c] }, code: 'ERR_ARGUMENT', text: /3/ },
    'devices that are no list': { options: { ranks: 2, devices: 'webgpu' }, code: 'ERR_ARGUMENT', text: /devices/ },
    'a device that is none': { options: { ranks: 2, devices: [a, {}] }, code: 'ERR_ARGUMENT', text: /devices/ },
  }
  for (const [name, { options, code, text }] of Object.entries(BAD)) {
    it(name, async () => {
      let started = 0
      const error = await errorOf(launch(options as LaunchOptions, () => started++))
      expect(error.code).toBe(code)
      expect(error.message).toMatch(text)
      expect(started).toBe(0)
    })
  }

  it('no main', async () => {
    const error = await errorOf(launch({ ranks: 2, device: a }, undefined as unknown as () => void))
    expect([error.code, error.message]).toEqual(['ERR_ARGUMENT', expect.stringContaining('main')])
  })
})

describe('devices', () => {
  const placement = async (options: LaunchOptions): Promise<number[]> => {
    const all = [a, b, c].map(gpuOf)
    return launch(options, async ({ comm, device }) => {
      expect(await sum(comm, device)).toBe(options.ranks)
      return all.indexOf(gpuOf(device))
    })
  }

  it('ranks take them in contiguous blocks, or one by one', async () => {
    expect(await placement({ ranks: 4, devices: [a, b] })).toEqual([0, 0, 1, 1])
    expect(await placement({ ranks: 5, devices: [a, b] })).toEqual([0, 0, 0, 1, 1])
    expect(await placement({ ranks: 8, devices: [a, b, c] })).toEqual([0, 0, 0, 1, 1, 1, 2, 2])
    expect(await placement({ ranks: 3, devices: [c, b, a] })).toEqual([2, 1, 0])
    expect(await placement({ ranks: 4, devices: [b, a, b, a] })).toEqual([1, 0, 1, 0])
    expect(await placement({ ranks: 2, device: c })).toEqual([2, 2])
  })

  it('each rank has a view of its own, and knows its place on the device', async () => {
    const seen: Device[] = []
    const found = await launch({ ranks: 5, devices: [a, b, a, b, a] }, ({ device, comm }) => {
      seen.push(device)
      return [comm.deviceRank, comm.deviceSize]
    })
    expect(found).toEqual([
      [0, 3],
      [0, 2],
      [1, 3],
      [1, 2],
      [2, 3],
    ])
    expect(new Set(seen).size).toBe(5)
  })

  it('by name they are opened once for all ranks, and disposed at the end; whatever that end is', async () => {
    for (const fails of [false, true]) {
      const seen: Device[] = []
      const run = launch({ ranks: 4, devices: ['webgpu', 'webgpu:0', 'webgpu', a] }, async ({ device, comm, rank }) => {
        seen.push(device)
        expect(await sum(comm, device)).toBe(4)
        expect(device.failure).toBeNull()
        if (fails && rank === 2) throw new Error('boom')
      })
      if (fails) expect((await errorOf(run)).message).toBe('boom')
      else await run
      expect(gpuOf(seen[0]!)).toBe(gpuOf(seen[2]!))
      expect(gpuOf(seen[0]!)).not.toBe(gpuOf(seen[1]!))
      expect(seen.map((device) => device.failure?.code)).toEqual(['ERR_DEVICE', 'ERR_DEVICE', 'ERR_DEVICE', undefined])
    }
  })

  it('brought by the program they stay open, and so do tensors on them', async () => {
    const [kept] = await launch({ ranks: 2, device: a }, async ({ comm, device }) => comm.allReduce(Tensor.full([2], 3, { device })))
    expect([...((await kept!.data()) as Float32Array)]).toEqual([6, 6])
    expect(a.failure).toBeNull()
  })

  it('brought by the program they carry no more queues after many programs than after one', async () => {
    const program = (): Promise<unknown> => launch({ ranks: 4, device: a }, ({ comm }) => comm.barrier())
    await program()
    const before = a.view().lane
    for (let i = 0; i < 10; i++) await program()
    expect(a.view().lane).toBe(before + 1)
  })

  it('one that cannot be opened: those opened before are disposed', async () => {
    expect((await errorOf(launch({ ranks: 2, devices: ['webgpu', 'webgpu:999'] }, () => {}))).code).toBe('ERR_BACKEND_UNAVAILABLE')
  })

  it('the default is webgpu', async () => {
    expect(await launch({ ranks: 2 }, ({ device }) => device.kind)).toEqual(['webgpu', 'webgpu'])
  })
})

describe('programs beside and inside each other', () => {
  it('launch inside launch, on the same device', async () => {
    const found = await launch({ ranks: 2, device: a }, async ({ rank, comm, device }) => {
      const inner = await launch({ ranks: 3, device }, async (context) => (rank + 1) * (await sum(context.comm, context.device)))
      return [inner, await sum(comm, device)]
    })
    expect(found).toEqual([
      [[3, 3, 3], 2],
      [[6, 6, 6], 2],
    ])
  })

  it('two at a time on one device keep apart, also when one fails', async () => {
    const program = (ranks: number) => (context: RankContext) => async (): Promise<number> => {
      let last = 0
      for (let i = 0; i < 10; i++) last = await sum(context.comm, context.device)
      expect(last).toBe(ranks)
      return last
    }
    const boom = new Error('boom')
    const [two, failed, five] = await Promise.allSettled([
      launch({ ranks: 2, device: a }, (context) => program(2)(context)()),
      launch({ ranks: 3, device: a }, async (context) => {
        await sum(context.comm, context.device)
        if (context.rank === 1) throw boom
        return program(3)(context)()
      }),
      launch({ ranks: 5, devices: [a, b] }, (context) => program(5)(context)()),
    ])
    expect(two).toEqual({ status: 'fulfilled', value: [2, 2] })
    expect(failed).toEqual({ status: 'rejected', reason: boom })
    expect(five).toEqual({ status: 'fulfilled', value: [5, 5, 5, 5, 5] })
  })

  it('split along the groups of a Mapping', async () => {
    const found = await launch({ ranks: 8, devices: [a, b] }, async ({ rank, size, comm, device }) => {
      const mapping = new Mapping({ worldSize: size, rank, tpSize: 2, ppSize: 2, cpSize: 2 })
      const groups = { tp: mapping.tpGroups, pp: mapping.ppGroups, cp: mapping.cpGroups }
      const places: Record<string, unknown> = {}
      for (const [name, all] of Object.entries(groups)) {
        const color = all.findIndex((group) => group.includes(rank))
        const part = (await comm.split({ color }))!
        using x = Tensor.from([rank], { device })
        using y = await part.allGather(x)
        expect([...((await y.data()) as Float32Array)]).toEqual([...all[color]!])
        expect(await part.host.allGather(rank)).toEqual([...all[color]!])
        places[name] = part.rank
      }
      expect(places).toEqual({ tp: mapping.tpRank, pp: mapping.ppRank, cp: mapping.cpRank })
      return comm.split({ color: rank === 3 ? null : 0 })
    })
    expect(found.map((group) => group?.size ?? null)).toEqual([7, 7, 7, null, 7, 7, 7, 7])
  })
})

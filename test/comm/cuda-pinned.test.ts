// CUDA ranks on devices that do not reach each other's memory: the same kernels, over pinned memory of the machine.
import '../support/cuda-apart.ts'
import { afterAll, describe, expect, it } from 'vitest'
import { createDeviceComm } from '../../runtime/comm/communicator.ts'
import { boundsOf, type PeerPlan, WAY, wayOf } from '../../runtime/comm/cuda/plan.ts'
import { homeOf, type Reach } from '../../runtime/comm/cuda/reach.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { control, reason } from '../support/cuda.ts'
import { Random, seed } from '../support/random.ts'
import { allCases, conformance, type GroupKind, groupOf, shareOf } from './conformance.ts'
import { overPeers, registered } from './cuda-ranks.ts'

const devices = reason === '' ? ((await Promise.all([0, 1, 2, 3].map((index) => openDevice(`cuda:${index}`)))) as CudaDevice[]) : []
afterAll(() => {
  for (const device of devices) device.dispose()
  if (reason === '') expect(control.counts()).toMatchObject({ imports: 0, registered: 0, reports: 0 })
})

const dealing = seed()
const random = new Random(dealing)
const cpu = await openDevice('cpu')
const of = (place: readonly number[]): Device[] => place.map((index) => devices[index] ?? cpu)

// An emulated device takes long, so each run takes another number of ranks.
const many = [2, 3, 4][random.int(3)] as number
const KINDS: GroupKind[] = [
  {
    name: `in one thread${reason}`,
    devices: of([0, 1, 2, 3]),
    brief: true,
    place: (ranks) => reason || (ranks === many ? [0, 1, 2, 3].slice(0, ranks) : `this run is with ${many} ranks`),
  },
]
conformance(KINDS)

describe.skipIf(reason !== '')(`ranks that share no thread, small workspaces${reason}`, () => {
  // Some ranks that share a device as well: sums are in the order of ranks.
  const place = [
    [0, 1, 0],
    [0, 1, 2],
    [0, 0, 1, 1],
  ][random.int(3)] as number[]
  const start = seed()
  describe(`on devices ${place} (seed ${start}, cases ${dealing})`, () => {
    const apart = { place: place.map((_, rank) => rank), random: new Random(start), share: shareOf(dealing, 0) }
    const group = groupOf(apart, (main) => overPeers(of(place) as CudaDevice[], main))
    allCases(group, true)
  })
})

describe.skipIf(reason !== '')(`where the memory lies${reason}`, () => {
  it.each([[[0, 1]], [[0, 1, 2, 3]], [[0, 1, 0]]])(
    "devices %j: all ranks have all ranks' memory pinned, and none of another device",
    async (place) => {
      expect(await registered(devices)).toBe(0)
      const ranks = place.length
      const told = await launch({ ranks, devices: of(place) }, async ({ comm, device, rank }) => {
        using x = Tensor.full([1000], 2 ** -rank, { device })
        using sum = await comm.allReduce(x)
        const found = [await sum.data(), comm.describe(), comm.stats().crossings] as const
        await comm.barrier()
        const counts = control.counts()
        await comm.barrier()
        return { found, counts }
      })
      for (const { found, counts } of told) {
        expect(found[0]).toEqual(new Float32Array(1000).fill(2 - 2 ** (1 - ranks)))
        expect(found[1]).toContain('reductions by kernels over pinned memory')
        expect(found[2]).toBe(0)
        expect(counts).toMatchObject({ imports: 0, registered: ranks ** 2 })
      }
      expect(await registered(devices)).toBe(0)
    },
  )

  it('devices that reach each other use pinned memory where it is asked for', async () => {
    control.plant('peers 1')
    const about = async (memory?: 'pinned'): Promise<string[]> =>
      launch({ ranks: 2, devices: of([0, 1]) }, async ({ host, device }) => {
        const comm = await createDeviceComm('cuda-ipc', { host, device, ...(memory && { memory }) })
        const part = await comm.split({ color: 0 })
        return `${comm.describe()}; ${part?.describe()}`
      })
    for (const text of await about('pinned')) expect(text.match(/over pinned memory/g)?.length, text).toBe(2)
    for (const text of await about()) expect(text.match(/over the devices' memory/g)?.length, text).toBe(2)
    control.plant('peers 0')
  })
})

describe('the choice of memory, and of ways', () => {
  const reach = (uuid: string, peers: string[], machine = 'm', domain: string | null = null): Reach => ({
    uuid,
    peers: [uuid, ...peers],
    machine,
    domain,
    noMulticast: null,
    multiprocessors: 1,
  })

  it('is that of the devices where all reach all, else pinned within a machine', () => {
    expect(homeOf([reach('a', ['b']), reach('b', ['a'])])).toEqual({ home: 'device', fabric: false })
    expect(homeOf([reach('a', ['b']), reach('b', ['a'])], 'pinned')).toEqual({ home: 'pinned', fabric: false })
    expect(homeOf([reach('a', ['b']), reach('b', [])])).toEqual({ home: 'pinned', fabric: false })
    expect(homeOf([reach('a', ['b']), reach('b', [])], 'device')).toEqual({ why: expect.stringContaining('device b cannot use') })
    expect(homeOf([reach('a', []), reach('b', [], 'n')])).toEqual({ why: expect.stringContaining('2 machines') })
    expect(homeOf([reach('a', [], 'm', 'd'), reach('b', [], 'n', 'd')])).toEqual({ home: 'device', fabric: true })
    expect(homeOf([reach('a', [], 'm', 'd'), reach('b', [], 'n', 'e')])).toEqual({ why: expect.stringContaining('2 machines') })
    expect(homeOf([reach('a', ['b'], 'm', 'd'), reach('b', ['a'], 'm', 'd')])).toEqual({ home: 'device', fabric: false })
    expect(homeOf(Array<Reach>(17).fill(reach('a', [])))).toEqual({ why: expect.stringContaining('17 ranks') })
  })

  it('over a bus takes what crosses it least', () => {
    for (let ranks = 2; ranks <= 16; ranks++) {
      const bounds = boundsOf('pinned', ranks)
      const plan: PeerPlan = {
        ranks,
        home: 'pinned',
        fabric: false,
        multicast: false,
        bounds,
        blocks: 1,
        dataBytes: 8 << 20,
        packetBytes: 1 << 20,
      }
      const meeting = 32 << 10
      for (let bytes = 16; bytes <= 8 << 20; bytes *= 2) {
        const costs = { packets: (3 * ranks - 2) * bytes, oneShot: ranks * bytes + meeting, twoShot: (4 - 1 / ranks) * bytes + 2 * meeting }
        const way = wayOf(plan, bytes, undefined)
        const [name] = Object.entries(WAY).find(([, number]) => number === way) as [keyof typeof costs, number]
        // Two-shot where it is less than both; packets where they are no more than one-shot.
        const least = costs.packets <= costs.oneShot ? 'packets' : costs.twoShot < costs.oneShot ? 'twoShot' : 'oneShot'
        expect(name, `${ranks} ranks, ${bytes} bytes`).toBe(least)
      }
    }
  })
})

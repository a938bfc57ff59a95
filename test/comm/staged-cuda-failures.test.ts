// Mixed groups whose CUDA ranks a transport joins, when something goes wrong with that: everybody hears whose fault it is; what a group leaves behind;
// groups split off; transports that are refused; NCCL as the transport.
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { createDeviceComm } from '../../runtime/comm/communicator.ts'
import type { DeviceComm } from '../../runtime/comm/device-comm.ts'
import type { GroupHost } from '../../runtime/comm/host.ts'
import { NcclComm } from '../../runtime/comm/nccl/comm.ts'
import { StagedComm } from '../../runtime/comm/staged/comm.ts'
import { PART_ELEMENTS } from '../../runtime/comm/staged/joined-site.ts'
import type { Joining } from '../../runtime/comm/staged/joining.ts'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import type { Device } from '../../runtime/device/device.ts'
import type { EngineDevice } from '../../runtime/device/engine/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { buildNccl } from '../native/nccl-double/build.ts'
import { control, cudaDevices, reason } from '../support/cuda.ts'
import { memoryWires } from '../support/memory-wire.ts'
import { errorOf, sleep } from '../support/outcomes.ts'
import { launchOver } from '../support/over-wire.ts'
import { seed } from '../support/random.ts'

const cpu = await openDevice('cpu')
const open = (): Promise<Device[]> => Promise.all(cudaDevices().map((one) => one.open()))
const [a, b] = (await open()) as [CudaDevice, CudaDevice]
afterAll(() => {
  for (const device of [a, b, cpu]) device?.dispose()
})
afterEach(() => control.plant('delay 1 0'))

const drawn = seed()
const COUNT = 2 * PART_ELEMENTS

type Run = <T>(devices: readonly Device[], main: (context: RankContext) => Promise<T>) => Promise<T[]>
const PLACES: [name: string, run: Run][] = [
  ['in one thread', (devices, main) => launch({ ranks: 3, devices: [...devices], timeoutMs: 20_000 }, main)],
  ['over a wire', (devices, main) => launchOver(memoryWires(3, { seed: drawn }), { devices: [...devices], timeoutMs: 20_000 }, main)],
]

async function sums({ comm, device, rank }: { comm: DeviceComm; device: Device; rank: number }): Promise<void> {
  using x = Tensor.full([COUNT], rank + 1, { device })
  using sum = await comm.allReduce(x)
  expect(await sum.data()).toEqual(new Float32Array(COUNT).fill((comm.size * (comm.size + 1)) / 2))
}

describe.skipIf(reason !== '').each(PLACES)(`cuda, cpu, cuda %s (seed ${drawn})${reason}`, (_, run) => {
  it('a device that stalls: its rank is named within the time', async () => {
    const told = await run([a, cpu, b], async (context) => {
      const { comm, device, rank, host } = context
      await sums(context as never)
      using x = Tensor.full([COUNT], 1, { device })
      await host.barrier()
      if (rank === 0) control.plant('delay 1 600000000')
      await host.barrier()
      const error = await errorOf(comm.allReduce(x, { timeoutMs: 500 }))
      if (rank === 0) control.plant('delay 1 0')
      return error
    })
    for (const [rank, error] of told.entries()) {
      expect(error, `rank ${rank}: ${error.message}`).toMatchObject({ code: 'ERR_TIMEOUT', rank: 2 } satisfies Partial<RankmeshError>)
    }
    await run([a, cpu, b], (context) => sums(context as never))
  })

  it('abort by the rank on the CPU ends what the others wait for in their transport', async () => {
    const told = await run([a, cpu, b], async (context) => {
      const { comm, device, rank, host } = context
      await sums(context as never)
      using x = Tensor.full([COUNT], 1, { device })
      await host.barrier()
      if (rank === 0) control.plant('delay 1 600000000')
      await host.barrier()
      const work = errorOf(comm.allReduce(x, { timeoutMs: 600_000 }))
      if (rank === 1) {
        await sleep(300)
        comm.abort(new Error('enough'))
        await sleep(300)
        control.plant('delay 1 0')
      }
      return work
    })
    for (const [rank, error] of told.entries()) {
      expect(error, `rank ${rank}: ${error.message}`).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 1 })
    }
    await run([a, cpu, b], (context) => sums(context as never))
  })

  it('destroy leaves nothing on the devices; groups split off and made by name have transports of their own', async () => {
    await run([a, cpu, b], async ({ comm, device, host, rank }) => {
      const named = (await createDeviceComm('hybrid', { host, device })) as StagedComm
      const split = (await named.split({ color: 0, key: -rank })) as DeviceComm
      for (const one of [named, split]) {
        expect(one.describe()).toContain('ranks 0+2 joined on their devices')
        await sums({ comm: one, device, rank })
      }
      const own = await comm.split({ color: Number(rank === 1) })
      expect(own?.describe()).not.toContain('joined on their devices')
      if (rank !== 1) expect(own?.describe()).toContain("by kernels over the devices' memory")
      const pending = rank === 2 ? null : named.allReduce(Tensor.full([COUNT], 1, { device }))
      if (rank === 2) await Promise.all([named.allReduce(Tensor.full([COUNT], 1, { device })), named.destroy()])
      else (await (pending as Promise<Tensor>)).dispose()
      for (const one of [named, split, own, comm]) one?.destroy()
      if (!(device.kind === 'cuda')) return
      const { guards } = device as EngineDevice
      for (let waited = 0; guards.size > 0 && waited < 5000; waited += 20) await sleep(20)
      expect(guards.size, 'guards of groups that have ended').toBe(0)
      await expect(named.allReduce(Tensor.full([1], 1, { device }))).rejects.toThrow('destroyed')
    })
  })
})

describe.skipIf(reason !== '')(`transports by hand${reason}`, () => {
  const sets = [[0, 2]]
  const create = (): never => {
    throw new Error('no group is split off here')
  }
  const staged = (context: RankContext, join: Joining['join']): Promise<StagedComm> =>
    StagedComm.joined(context.host as GroupHost, context.device, { sets, join, create })

  it('refused on all ranks: each partial crosses by itself', async () => {
    await launch({ ranks: 3, devices: [a, cpu, b] }, async (context) => {
      const comm = await staged(context, async () => null)
      expect(comm.describe()).not.toContain('joined on their devices')
      await sums({ ...context, comm })
    })
  })

  it('NCCL', async () => {
    const before = process.env.RANKMESH_NCCL_PATH
    process.env.RANKMESH_NCCL_PATH = await buildNccl()
    try {
      for (const [, run] of PLACES) {
        await run([a, cpu, b], async (context) => {
          const abouts: string[] = []
          const comm = await staged(context, async (host, view) => {
            const own = await NcclComm.create(host, view)
            abouts.push(own.describe())
            return own
          })
          expect(comm.describe()).toContain('ranks 0+2 joined')
          for (const about of abouts) expect(about).toContain('NCCL')
          await sums({ ...context, comm })
          comm.destroy()
        })
      }
    } finally {
      if (before === undefined) delete process.env.RANKMESH_NCCL_PATH
      else process.env.RANKMESH_NCCL_PATH = before
    }
  })
})

// Last: the emulated device is lost to all who have it open, until nobody has.
describe.skipIf(reason !== '').each(PLACES)(`a lost device, %s (seed ${drawn})${reason}`, (_, run) => {
  beforeAll(() => {
    for (const device of [a, b]) device.dispose()
  })
  it('a device that is lost: its rank is named, and the group has ended for all', async () => {
    const [first, second] = (await open()) as [Device, Device]
    const told = await run([first, cpu, second], async (context) => {
      const { comm, device, rank, host } = context
      await comm.barrier()
      await sums(context as never)
      using x = Tensor.full([COUNT], 1, { device })
      await host.barrier()
      if (rank === 0) control.plant('lose 1 1 719')
      await host.barrier()
      const error = await errorOf(comm.allReduce(x))
      const later = await errorOf(comm.allReduce(x))
      return { error, later }
    })
    for (const [rank, { error, later }] of told.entries()) {
      expect([error.code, rank === 2 ? 2 : error.rank], `rank ${rank}: ${error.message}`).toEqual([
        rank === 2 ? 'ERR_DEVICE' : 'ERR_RANK_FAILED',
        2,
      ])
      expect(['ERR_DEVICE', 'ERR_RANK_FAILED', 'ERR_COLLECTIVE_MISMATCH'], `rank ${rank}, later`).toContain(later.code)
    }
    for (const device of [first, second]) device.dispose()
  })
})

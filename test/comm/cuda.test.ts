// The conformance suite over CUDA ranks: kernels over peers' memory, on one device and on two; one engine's commands; and host memory, with a rank
// on the CPU.
import { afterAll, describe, expect, it } from 'vitest'
import { Communicator, createDeviceComm } from '../../runtime/comm/communicator.ts'
import { CudaComm } from '../../runtime/comm/cuda/comm.ts'
import type { GroupHost } from '../../runtime/comm/host.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { buildNccl } from '../native/nccl-double/build.ts'
import { control, cudaDevices, reason } from '../support/cuda.ts'
import { errorOf } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'
import { allCases, conformance, type GroupKind, groupOf, shareOf } from './conformance.ts'
import { overPeers, registered, SMALL } from './cuda-ranks.ts'

const [a, b] = (await Promise.all(cudaDevices().map(({ open }) => open()))) as CudaDevice[]
const cpu = await openDevice('cpu')
const [first, second] = [a ?? cpu, b ?? cpu] as [Device, Device]
afterAll(() => {
  for (const device of [a, b, cpu]) device?.dispose()
})

/** Groups of these numbers of ranks, on these devices. */
const only =
  (place: Record<number, number[]>) =>
  (ranks: number): number[] | string =>
    reason || (place[ranks] ?? `run with ${Object.keys(place).join(', ')} ranks`)

const KINDS: GroupKind[] = [
  { name: 'two devices in one thread', devices: [first, second], brief: true, place: only({ 2: [0, 1] }) },
  { name: 'one engine', devices: [first], brief: true, place: only({ 1: [0], 3: [0, 0, 0] }) },
  { name: 'with a rank on the CPU, through host memory', devices: [first, cpu], brief: true, place: only({ 3: [0, 1, 0] }) },
]

conformance(KINDS)

describe.skipIf(reason !== '')(`ranks that share no thread, small workspaces${reason}`, () => {
  const dealing = seed()
  const places = [
    [0, 0],
    [0, 1],
    [0, 0, 0],
  ]
  // An emulated device takes long, so each run takes another of these.
  const turn = new Random(dealing).int(places.length)
  for (const place of [places[turn] as number[]]) {
    const start = seed()
    const devices = place.map((index) => [a, b][index] as CudaDevice)
    describe(`${place.length} ranks on devices ${[...new Set(place)]} (seed ${start}, cases ${dealing})`, () => {
      const group = groupOf({ place, random: new Random(start), share: shareOf(dealing, turn) }, (main) => overPeers(devices, main))
      allCases(group, true)
    })
  }
})

describe.skipIf(reason !== '')(`ranks of one thread that share a device, by kernels over its memory, small workspaces${reason}`, () => {
  const [start, dealing] = [seed(), seed()]
  for (const ranks of [2 + new Random(dealing).int(2)]) {
    describe(`${ranks} ranks (seed ${start}, cases ${dealing})`, () => {
      const place = Array<number>(ranks).fill(0)
      const group = groupOf({ place, random: new Random(start), share: shareOf(dealing, ranks) }, (main) =>
        launch({ ranks, devices: [first], timeoutMs: 20_000 }, async (context) => {
          const peers = await CudaComm.create(context.host as GroupHost, context.device, { room: SMALL })
          const comm = new Communicator(context.host, peers, context.device)
          const result = await main({ ...context, comm })
          comm.destroy()
          return result
        }),
      )
      allCases(group, true)
    })
  }
})

describe.skipIf(reason !== '')(`the choice for CUDA ranks${reason}`, () => {
  it.each([
    [[0, 0], 'reductions on-device'],
    [[0, 1], "reductions by kernels over the devices' memory"],
    [[0, 1, 0], "reductions by kernels over the devices' memory"],
    [[0, 2], 'reductions in host memory'],
  ])('devices %j: %s', async (place, wanted) => {
    const devices = place.map((index) => [first, second, cpu][index] as Device)
    const told = await launch({ ranks: place.length, devices }, async ({ comm }) => comm.describe())
    for (const text of told) expect(text).toContain(wanted)
  })

  it('devices that have no memory in common: NCCL where it is there, else host memory', async () => {
    const told = (): Promise<string[]> => launch({ ranks: 2, devices: [first, second] }, async ({ comm }) => comm.describe())
    const before = process.env.RANKMESH_NCCL_PATH
    const { engine } = second as CudaDevice
    const { machine } = engine
    control.plant('peers 0')
    try {
      for (const text of await told()) expect(text).toContain('reductions by kernels over pinned memory')
      engine.machine = 'another one'
      process.env.RANKMESH_NCCL_PATH = '/nowhere/libnccl.so.2'
      for (const text of await told()) expect(text).toContain('reductions in host memory')
      process.env.RANKMESH_NCCL_PATH = await buildNccl()
      for (const text of await told()) expect(text).toContain('NCCL')
    } finally {
      control.plant('peers 1')
      engine.machine = machine
      if (before === undefined) delete process.env.RANKMESH_NCCL_PATH
      else process.env.RANKMESH_NCCL_PATH = before
    }
    for (const text of await told()) expect(text).toContain("reductions by kernels over the devices' memory")
  })

  it('a driver that pins no memory for one rank: for all NCCL, or host memory where NCCL does not join them', async () => {
    const before = process.env.RANKMESH_NCCL_PATH
    process.env.RANKMESH_NCCL_PATH = await buildNccl()
    for (const [devices, how] of [
      [[first, second], 'NCCL'],
      [[first, second, first], 'reductions in host memory'],
    ] as const) {
      expect(await registered([a, b] as CudaDevice[])).toBe(0)
      control.plant('peers 0;fail cuMemHostRegister 3 801')
      const told = await launch({ ranks: devices.length, devices }, async ({ comm }) => comm.describe())
      for (const text of told) expect(text).toContain(how)
      control.plant('peers 1;forget')
    }
    if (before === undefined) delete process.env.RANKMESH_NCCL_PATH
    else process.env.RANKMESH_NCCL_PATH = before
    expect(await registered([a, b] as CudaDevice[])).toBe(0)
    expect(control.counts().reports).toBe(0)
  })

  it('createDeviceComm by name: refused where the devices are of another kind, or do not reach the memory that is asked for', async () => {
    const asked = (devices: readonly Device[], memory?: 'device' | 'pinned'): Promise<unknown[]> =>
      launch({ ranks: 2, devices }, ({ host, device }) =>
        errorOf(createDeviceComm('cuda-ipc', { host, device, ...(memory && { memory }) })),
      )
    expect(await asked([first, cpu])).toEqual([expect.objectContaining({ rank: 1 }), expect.objectContaining({ code: 'ERR_ARGUMENT' })])
    for (const error of await asked([first, second], 'elsewhere' as 'device')) expect(error).toMatchObject({ code: 'ERR_ARGUMENT' })
    control.plant('peers 0')
    for (const error of await asked([first, second], 'device')) expect(error).toMatchObject({ code: 'ERR_BACKEND_UNAVAILABLE' })
    control.plant('peers 1')
    const comms = await launch({ ranks: 2, devices: [first, second] }, async ({ host, device }) => {
      const comm = await createDeviceComm('cuda-ipc', { host, device })
      using sum = await comm.allReduce(Tensor.full([5], 2, { device }))
      return [comm.describe(), await sum.data()]
    })
    for (const [about, sum] of comms) {
      expect(about).toContain('by kernels over')
      expect(sum).toEqual(new Float32Array(5).fill(4))
    }
  })
})

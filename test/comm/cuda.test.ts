// The conformance suite over CUDA ranks: kernels over peers' memory, on one device and on two; one engine's commands; and host memory, with a rank
// on the CPU.
import { afterAll, describe, expect, it } from 'vitest'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import type { Device } from '../../runtime/device/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch } from '../../runtime/scheduler/launch.ts'
import { cudaDevices, reason } from '../support/cuda.ts'
import { Random, seed } from '../support/random.ts'
import { allCases, conformance, type GroupKind, groupOf, shareOf } from './conformance.ts'
import { overPeers } from './cuda-ranks.ts'

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
  { name: 'two devices in one thread', devices: [first, second], place: only({ 2: [0, 1] }) },
  { name: 'one engine', devices: [first], brief: true, place: only({ 1: [0], 2: [0, 0], 4: [0, 0, 0, 0] }) },
  { name: 'with a rank on the CPU, through host memory', devices: [first, cpu], brief: true, place: only({ 3: [0, 1, 0] }) },
]

conformance(KINDS)

describe.skipIf(reason !== '')(`ranks that share no thread, small workspaces${reason}`, () => {
  const dealing = seed()
  for (const [turn, place] of [
    [0, 0],
    [0, 1],
    [0, 0, 0],
    [0, 0, 0, 0],
  ].entries()) {
    const start = seed()
    const devices = place.map((index) => [a, b][index] as CudaDevice)
    describe(`${place.length} ranks on devices ${[...new Set(place)]} (seed ${start}, cases ${dealing})`, () => {
      const group = groupOf({ place, random: new Random(start), share: shareOf(dealing, turn) }, (main) => overPeers(devices, main))
      allCases(group, place.length > 2)
    })
  }
})

describe.skipIf(reason !== '')(`the choice for CUDA ranks${reason}`, () => {
  it.each([
    [[0, 0], 'reductions on-device'],
    [[0, 1], "reductions by kernels over the devices' memory"],
    [[0, 1, 0], 'reductions in host memory'],
    [[0, 2], 'reductions in host memory'],
  ])('devices %j: %s', async (place, wanted) => {
    const devices = place.map((index) => [first, second, cpu][index] as Device)
    const told = await launch({ ranks: place.length, devices }, async ({ comm }) => comm.describe())
    for (const text of told) expect(text).toContain(wanted)
  })
})

// The conformance suite over the kinds of group that are built.
import { afterAll } from 'vitest'
import { testDevice } from '../support/device.ts'
import { conformance, type GroupKind } from './conformance.ts'

const [a, b, c] = [await testDevice(), await testDevice(), await testDevice()]
const devices = [a, b, c]
const live = (): number => devices.reduce((sum, { gpu }) => sum + gpu.pool.liveBuffers, 0)
afterAll(() => {
  for (const device of devices) device.dispose()
})

/** Ranks in contiguous blocks of these lengths. */
const blocks = (...lengths: number[]): number[] => lengths.flatMap((length, device) => Array<number>(length).fill(device))

const KINDS: GroupKind[] = [
  { name: 'webgpu, one device', devices, live, some: 4, place: (ranks) => blocks(ranks) },
  {
    name: 'webgpu, two devices',
    devices,
    live,
    some: 2,
    place: (ranks) => (ranks < 2 || ranks > 16 ? 'needs 2 to 16 ranks' : blocks(Math.ceil(ranks / 2), Math.floor(ranks / 2))),
  },
  {
    name: 'webgpu, three devices in uneven blocks',
    devices,
    live,
    some: 2,
    place: (ranks) => (ranks < 4 || ranks > 16 ? 'needs 4 to 16 ranks' : blocks(1, ranks - 3, 2)),
  },
  {
    name: 'webgpu, ranks interleaved over two devices',
    devices,
    live,
    some: 2,
    place(ranks) {
      if (ranks < 3 || ranks > 16) return 'needs 3 to 16 ranks'
      return Array.from({ length: ranks }, (_, rank) => (ranks <= 4 ? rank % 2 : Number(rank % 3 > 0))) // with more, no even steps
    },
  },
]

conformance(KINDS)

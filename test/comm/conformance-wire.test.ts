// The conformance suite over ranks that share no thread as far as they can tell: each has its own device, a wire joins them.
import { afterAll } from 'vitest'
import { testDevice } from '../support/device.ts'
import { memoryWires } from '../support/memory-wire.ts'
import { seed } from '../support/random.ts'
import { conformance, type GroupKind } from './conformance.ts'

const device = await testDevice()
afterAll(() => device.dispose())

const live = (): number => device.gpu.pool.liveBuffers
const drawn = seed()

const KINDS: GroupKind[] = [
  {
    name: 'webgpu over a wire',
    devices: [device],
    live,
    place: (ranks) => (ranks < 2 || ranks > 4 ? 'needs 2 to 4 ranks' : Array<number>(ranks).fill(0)),
    join: (ranks) => memoryWires(ranks),
  },
  {
    name: `webgpu over a wire with delays (seed ${drawn})`,
    devices: [device],
    live,
    brief: true,
    place: (ranks) => (ranks !== 2 && ranks !== 8 ? 'run with 2 and 8 ranks' : Array<number>(ranks).fill(0)),
    join: (ranks) => memoryWires(ranks, { seed: drawn }),
  },
]

conformance(KINDS)

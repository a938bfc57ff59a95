// The conformance suite over groups with CPU ranks: of one device, which share memory, and those whose collectives go through host memory.
import { afterAll } from 'vitest'
import { CpuDevice } from '../../runtime/device/cpu/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { testDevice } from '../support/device.ts'
import { memoryWires } from '../support/memory-wire.ts'
import { seed } from '../support/random.ts'
import { conformance, type GroupKind } from './conformance.ts'

const gpu = await testDevice()
const cpu = (await openDevice('cpu')) as CpuDevice
const loops = CpuDevice.open(null)
const devices = [gpu, cpu, loops]
afterAll(() => {
  for (const device of devices) device.dispose()
})

const live = (): number => gpu.gpu.pool.liveBuffers + cpu.memory.liveBlocks + loops.memory.liveBlocks
const drawn = seed()
const [GPU, CPU, LOOPS] = [0, 1, 2]

const KINDS: GroupKind[] = [
  {
    name: cpu.description,
    devices,
    live,
    place: (ranks) => (ranks > 8 ? 'run with up to 8 ranks' : Array<number>(ranks).fill(CPU)),
  },
  {
    name: `${loops.description}, few cases`,
    devices,
    live,
    brief: true,
    place: (ranks) => (ranks > 4 ? 'run with up to 4 ranks' : Array<number>(ranks).fill(LOOPS)),
  },
  {
    name: 'one rank on webgpu, the others on cpu',
    devices,
    live,
    place: (ranks) => (ranks < 2 || ranks > 4 ? 'needs 2 to 4 ranks' : [GPU, ...Array<number>(ranks - 1).fill(CPU)]),
  },
  {
    name: 'one rank on cpu, the others on webgpu',
    devices,
    live,
    brief: true,
    place: (ranks) => (ranks < 3 || ranks > 4 ? 'run with 3 and 4 ranks' : [...Array<number>(ranks - 1).fill(GPU), CPU]),
  },
  {
    name: 'cpu, then webgpu, then another cpu device, interleaved',
    devices,
    live,
    brief: true,
    place: (ranks) =>
      ranks < 3 || ranks > 8 ? 'run with 3 to 8 ranks' : Array.from({ length: ranks }, (_, i) => [CPU, GPU, LOOPS][i % 3]!),
  },
  {
    name: 'cpu over a wire',
    devices,
    live,
    place: (ranks) => (ranks < 2 || ranks > 4 ? 'needs 2 to 4 ranks' : Array<number>(ranks).fill(CPU)),
    join: (ranks) => memoryWires(ranks),
  },
  {
    name: `webgpu and cpu over a wire with delays (seed ${drawn})`,
    devices: [cpu, gpu, cpu, cpu], // a device for each rank: over a wire, ranks ascending
    live,
    brief: true,
    place: (ranks) => (ranks < 2 || ranks > 4 ? 'run with 2 to 4 ranks' : Array.from({ length: ranks }, (_, i) => i)),
    join: (ranks) => memoryWires(ranks, { seed: drawn }),
  },
]

conformance(KINDS)

// CUDA ranks whose devices have multicasts: one store takes a packet to all of them, and the bits are those that they have without.
import '../support/cuda-multicast.ts'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest'
import { PeerMemory } from '../../runtime/comm/cuda/memory.ts'
import { noMulticast, type Reach } from '../../runtime/comm/cuda/reach.ts'
import { AllReduceFusionPattern as P } from '../../runtime/comm/fusion/patterns.ts'
import { addonReport } from '../../runtime/core/addon-node.ts'
import type { DType } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { bundle } from '../support/bundle.ts'
import { control, reason } from '../support/cuda.ts'
import type { Counts } from '../support/cuda-control.ts'
import { sleep } from '../support/outcomes.ts'
import { Random, seed } from '../support/random.ts'
import type { Found } from './cuda-program.ts'
import { overPeers } from './cuda-ranks.ts'

const devices = reason === '' ? ((await Promise.all([0, 1, 2, 3].map((index) => openDevice(`cuda:${index}`)))) as CudaDevice[]) : []
const program = reason === '' ? await bundle('test/comm/cuda-program.ts') : ''
afterAll(() => {
  for (const device of devices) device.dispose()
})

const BY_MULTICAST = "by kernels over the devices' memory, stores to all at once by multicast"

/** What the double counts once all that ended groups have left is gone. */
async function settled(): Promise<Counts> {
  for (let looks = 0; looks < 20 && control.counts().virtual > 0; looks++) {
    for (const device of devices) {
      await PeerMemory.sweep(device.engine)
      await Tensor.full([1], 0, { device }).bytes()
    }
    await sleep(20)
  }
  return control.counts()
}
beforeEach(async () => {
  if (reason === '') control.plant('forget;multicast 1;capability 90')
})
afterEach(async () => {
  if (reason === '') expect(await settled()).toMatchObject({ virtual: 0, imports: 0, reports: 0 })
})

type Group = <T>(ranks: number, main: (context: RankContext) => Promise<T>) => Promise<T[]>
const GROUPS: readonly { name: string; run: Group }[] = [
  { name: 'in one thread', run: (ranks, main) => launch({ ranks, devices: devices.slice(0, ranks) }, main) },
  { name: 'that share no thread, small workspaces', run: (ranks, main) => overPeers(devices.slice(0, ranks), main) },
]

/** All bits of sums by packets, one-shot and two-shot, of fused norms with and without codes, and of a step that is recorded. */
async function results({ comm, device, rank, size }: RankContext, start: number): Promise<{ about: string; bytes: Uint8Array[] }> {
  const random = new Random(start)
  const bytes: Uint8Array[] = []
  const keep = async (...tensors: (Tensor | null)[]): Promise<void> => {
    for (const tensor of tensors) if (tensor) bytes.push(await tensor.bytes())
    for (const tensor of tensors) tensor?.dispose()
  }
  const own = (count: number): Float32Array => Array.from({ length: size }, () => random.floats(count))[rank] as Float32Array
  for (const dtype of ['float32', 'bfloat16', 'float16'] as const satisfies readonly DType[]) {
    for (const count of [1, 13, 4097]) {
      using x = Tensor.from(own(count), { dtype, device })
      // Turn by turn: what one call leaves in the workspaces is what the next one finds.
      for (const algorithm of [undefined, 'two-shot', 'one-shot', undefined] as const) {
        if (algorithm === 'two-shot' && count < size) continue
        await keep(await comm.allReduce(x, { ...(algorithm && { algorithm }) }))
      }
    }
    const [rows, n] = [5, 96]
    using input = Tensor.from(own(rows * n), { shape: [rows, n], dtype, device })
    using residualIn = Tensor.from(random.floats(rows * n), { shape: [rows, n], dtype, device })
    using rmsGamma = Tensor.from(random.floats(n), { dtype, device })
    for (const algorithm of [undefined, 'two-shot'] as const) {
      using residual = Tensor.from(await residualIn.data(), { shape: [rows, n], dtype, device })
      const norm = { x: input, residual, weight: rmsGamma, ...(algorithm && { algorithm }) }
      await keep(await comm.allReduceResidualBiasRMSNorm(norm))
      bytes.push(await residual.bytes())
    }
    const pattern = P.kARResidualRMSNormOutDynamicFP8Quant
    await keep(...(Object.values(await comm.allReduceFusion({ input, residualIn, rmsGamma, pattern })) as (Tensor | null)[]))
  }
  using x = Tensor.from(own(1000), { device })
  using sum = Tensor.empty([1000], { device })
  using again = Tensor.empty([1000], { device })
  const recording = await comm.record(async () => {
    await comm.allReduce(x, { out: sum })
    await comm.allReduce(sum, { out: again, algorithm: 'two-shot' })
  })
  for (let run = 0; run < 4; run++) {
    x.set(own(1000))
    await recording.launch()
    bytes.push(await sum.bytes(), await again.bytes())
  }
  recording.dispose()
  return { about: comm.describe(), bytes }
}

describe.skipIf(reason !== '').each(GROUPS)(`ranks $name${reason}`, ({ run }) => {
  const start = seed()

  it.each([2, 4])(`%i ranks have the bits that they have without a multicast (seed ${start})`, async (ranks) => {
    const stores = control.counts().multicastStores
    const by = await run(ranks, (context) => results(context, start))
    expect(control.counts().multicastStores).toBeGreaterThan(stores)
    expect((await settled()).virtual).toBe(0)
    control.plant('multicast 0')
    const before = control.counts().multicastStores
    const without = await run(ranks, (context) => results(context, start))
    expect(control.counts()).toMatchObject({ multicastStores: before, virtual: 0 })
    for (const [rank, { about, bytes }] of by.entries()) {
      expect(about).toContain(BY_MULTICAST)
      expect(without[rank]?.about).not.toContain('multicast')
      expect(bytes.length).toBe(without[rank]?.bytes.length)
      for (const [i, one] of bytes.entries())
        expect(Buffer.compare(one, without[rank]?.bytes[i] as Uint8Array), `rank ${rank}, ${i}`).toBe(0)
    }
  })

  it('a packet takes one store, whatever the number of ranks, and so does a part of a two-shot sum', async () => {
    for (const ranks of [2, 3, 4]) {
      await run(ranks, async ({ comm, device }) => {
        using x = Tensor.full([1000], 1, { device })
        for (const [algorithm, each] of [
          [undefined, ranks],
          ['two-shot', 1],
          ['one-shot', ranks], // so small that it goes by packets too
        ] as const) {
          await comm.barrier()
          const before = control.counts().multicastStores
          await comm.barrier()
          using sum = await comm.allReduce(x, { ...(algorithm && { algorithm }) })
          expect(await sum.data()).toEqual(new Float32Array(1000).fill(ranks))
          await device.sync()
          await comm.barrier()
          expect(control.counts().multicastStores - before).toBe(each * 250)
          await comm.barrier()
        }
      })
    }
  })
})

describe.skipIf(reason !== '')(`ranks in threads and processes${reason}`, () => {
  const start = seed()
  const run = async (placement: 'thread' | 'process'): Promise<Found> => {
    const env = { ...process.env, RANKMESH_ADDON: addonReport().path ?? 'off' }
    const plan = JSON.stringify({ devices: ['cuda:0', 'cuda:1'], start, placement })
    const child = spawn(process.execPath, [program, 'collectives', plan], { env, timeout: 100_000, stdio: ['ignore', 'pipe', 'inherit'] })
    let out = ''
    child.stdout.on('data', (chunk) => {
      out += chunk
    })
    expect(await once(child, 'close')).toEqual([0, null])
    return JSON.parse(out.split('\n')[0] as string) as Found
  }

  it(`threads have a multicast, processes have one, and all have the same bits (seed ${start})`, async () => {
    const found = [await run('thread'), await run('process')]
    const before = control.counts().multicastStores
    control.plant('fabric 1')
    found.push(await run('process'))
    expect(control.counts().multicastStores).toBeGreaterThan(before)
    control.plant('fabric 0;multicast 0')
    const without = await run('process')
    for (const { about } of found) expect(about).toContain(BY_MULTICAST)
    expect(without.about).not.toContain('multicast')
    for (const one of found) expect({ ...one, about: '' }).toEqual({ ...without, about: '' })
  })

  it.each([
    [
      'cuMemExportToShareableHandle 1 801',
      /rank . cannot use the memory of rank .: .*does not hand it over: cuMemExportToShareableHandle: .*NOT_SUPPORTED/,
    ],
    ['cuMemImportFromShareableHandle 1 801', /rank . cannot use the memory of rank .: cuMemImportFromShareableHandle: .*NOT_SUPPORTED/],
    ['cuMemMap 2 2', /rank . cannot use the memory of rank .: cuMemMap: .*OUT_OF_MEMORY/],
  ])('a driver that refuses %s: processes go on without a multicast', async (fault, why) => {
    control.plant(`multicast 1;fail ${fault}`)
    const { about } = await run('process')
    expect(about).toContain("over the devices' memory, without multicast (")
    expect(about).toMatch(why)
  })
})

describe.skipIf(reason !== '')(`a driver that refuses something${reason}`, () => {
  const sum = async ({ comm, device, rank, size }: RankContext): Promise<string> => {
    using x = Tensor.full([1000], 2 ** -rank, { device })
    using y = await comm.allReduce(x)
    expect(await y.data()).toEqual(new Float32Array(1000).fill(2 - 2 ** (1 - size)))
    return comm.describe()
  }

  it.each([
    ['cuMemGetAllocationGranularity', 3, 801],
    ['cuMulticastGetGranularity', 3, 801],
    ['cuMulticastCreate', 1, 801],
    ['cuMulticastAddDevice', 2, 801],
    ['cuMulticastBindMem', 2, 801],
    ['cuMemCreate', 2, 801],
    ['cuMemCreate', 2, 2],
    ['cuMemAddressReserve', 4, 2],
    ['cuMemMap', 4, 801],
    ['cuMemSetAccess', 6, 801],
  ])('%s, any of the %i times that two ranks call it, with error %i: all go on without a multicast', async (name, calls, code) => {
    for (let nth = 1; nth <= calls + 1; nth++) {
      control.plant(`forget;multicast 1;fail ${name} ${nth} ${code}`)
      for (const about of await launch({ ranks: 2, devices: devices.slice(0, 2) }, sum)) {
        if (nth > calls) expect(about).toContain(BY_MULTICAST)
        else
          expect(about).toMatch(
            new RegExp(`over the devices' memory, without multicast \\(.*${code === 2 ? `(could not allocate|${name})` : name}`),
          )
      }
      expect(await settled(), `${nth}`).toMatchObject({ virtual: 0, reports: 0 })
    }
  })

  it('kernels that are compiled for older devices, and functions that do not tell: nothing is tried', async () => {
    const untold = [1, 2, 3, 4].map((nth) => `fail cuFuncGetAttribute ${nth} 801`).join(';')
    for (const setting of ['capability 80', `forget;capability 90;${untold}`]) {
      control.plant(`multicast 1;${setting}`)
      for (const about of await launch({ ranks: 2, devices: devices.slice(0, 2) }, sum)) expect(about).not.toContain('multicast')
    }
  })

  it('ranks that share a device, or want pinned memory, have none', async () => {
    const shared = [0, 1, 0].map((index) => devices[index] as CudaDevice)
    for (const about of await launch({ ranks: 3, devices: shared }, sum)) expect(about).not.toContain('multicast')
    for (const about of await overPeers(devices.slice(0, 2), sum, { memory: 'pinned' })) expect(about).not.toContain('multicast')
  })
})

describe('the choice of a multicast', () => {
  const reach = (uuid: string, noMulticast: string | null = null): Reach => ({
    uuid,
    peers: ['a', 'b'],
    machine: 'm',
    domain: null,
    noMulticast,
    multiprocessors: 1,
  })

  it('wants two devices or more, all able, a rank each', () => {
    expect(noMulticast([reach('a'), reach('b')])).toBe(null)
    expect(noMulticast([reach('a')])).toContain('one rank')
    expect(noMulticast([reach('a'), reach('b'), reach('a')])).toContain('share a device')
    expect(noMulticast([reach('a'), reach('b', 'why')])).toBe('why')
  })
})

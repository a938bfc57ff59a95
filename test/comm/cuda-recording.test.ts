// Steps of CUDA ranks on several devices, recorded and launched again: the same bits as when they are run each time.
import { afterAll, describe, expect, it } from 'vitest'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { CudaDevice } from '../../runtime/device/cuda/device.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { cudaDevices, reason } from '../support/cuda.ts'
import { Random, seed } from '../support/random.ts'
import { overPeers } from './cuda-ranks.ts'

const [a, b] = (await Promise.all(cudaDevices().map(({ open }) => open()))) as [CudaDevice, CudaDevice]
afterAll(() => {
  for (const device of [a, b]) device?.dispose()
})

type Run = <T>(main: (context: RankContext) => Promise<T>) => Promise<T[]>
const GROUPS: readonly { name: string; run: Run }[] = [
  { name: 'in one thread', run: (main) => launch({ ranks: 2, devices: [a, b] }, main) },
  { name: 'that share no thread', run: (main) => overPeers([a, b], main) },
  { name: 'that share no thread, over pinned memory', run: (main) => overPeers([a, b], main, { memory: 'pinned' }) },
  { name: 'that share no thread, on one device', run: (main) => overPeers([a, a, a], main) },
]

describe.skipIf(reason !== '').each(GROUPS)(`ranks $name${reason}`, ({ run }) => {
  const start = seed()

  it(`a step of sums, other reductions, fused norms and gathers, launched again and again (seed ${start})`, async () => {
    await run(async ({ comm, device, rank, size }) => {
      const [rows, n] = [2, 96]
      const random = new Random(start)
      using x = Tensor.empty([rows, n], { device })
      using residual = Tensor.empty([rows, n], { device })
      using weight = Tensor.from(random.floats(n), { device })
      using norm = Tensor.empty([rows, n], { device })
      using sum = Tensor.empty([rows, n], { device })
      using top = Tensor.empty([rows, n], { device })
      using part = Tensor.empty([rows, n], { device })
      using all = Tensor.empty([rows, n * size], { device })
      // Packets, a row of flags, pieces: what one run leaves in the workspaces is what the next one finds.
      const step = async (): Promise<void> => {
        await comm.allReduceResidualBiasRMSNorm({ x, residual, weight, out: norm })
        using doubled = device.add(norm, x)
        await comm.allReduce(doubled, { out: sum })
        await comm.allReduce(doubled, { out: top, op: 'max' })
        using wider = await comm.allGather(top)
        using mean = await comm.reduceScatter(wider, { op: 'avg' })
        device.copy(mean, part)
        using wide = await comm.allGather(sum)
        device.copy(wide, all)
      }
      expect(comm.records).toBe(true)
      const found: Uint8Array[][] = []
      let recording: Awaited<ReturnType<typeof comm.record>> | undefined
      for (const recorded of [false, true]) {
        const drawn = new Random(start + 1)
        for (let round = 0; round < 5; round++) {
          const parts = Array.from({ length: size }, () => drawn.floats(rows * n))
          device.write(x.storage, 0, new Uint8Array((parts[rank] as Float32Array).buffer))
          device.write(residual.storage, 0, new Uint8Array(drawn.floats(rows * n).buffer))
          if (!recorded) await step()
          else if (recording) await recording.launch()
          else recording = await comm.record(step)
          const bytes = [
            await residual.bytes(),
            await norm.bytes(),
            await sum.bytes(),
            await top.bytes(),
            await part.bytes(),
            await all.bytes(),
          ]
          if (recorded)
            for (const [i, one] of bytes.entries()) expect(Buffer.compare(one, found[round]![i]!), `round ${round}, ${i}`).toBe(0)
          else found.push(bytes)
        }
      }
      recording?.dispose()
      await expect(recording?.launch()).rejects.toMatchObject({ code: 'ERR_ARGUMENT' })
    })
  })
})

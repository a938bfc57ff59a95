// Ranks over NCCL in threads and processes: `node nccl-placed-program.mjs PLACEMENT RANKS WHAT`. Each rank tells on standard output what it found.
import { writeSync } from 'node:fs'
import { Communicator, createDeviceComm } from '../../runtime/comm/communicator.ts'
import type { DeviceComm } from '../../runtime/comm/device-comm.ts'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import { launch, type Placement, type RankContext } from '../../runtime/scheduler/launch.ts'

const [placement, ranks, what] = process.argv.slice(2) as [Placement, string, string]

/** A line at once, also from a rank that is about to end. */
const tell = (value: unknown): void => void writeSync(1, `${JSON.stringify(value)}\n`)

async function values(tensor: Tensor): Promise<number[]> {
  return Array.from((await tensor.data()) as Float32Array)
}

type NcclContext = RankContext & { nccl: DeviceComm }

async function collectives({ comm, nccl, device, rank, size }: NcclContext): Promise<void> {
  using x = Tensor.arange(3 * size, { dtype: 'float32', device })
  using own = Tensor.full([2], rank + 1, { device })
  using sum = await comm.allReduce(x)
  using part = await comm.reduceScatter(x)
  using all = await comm.allGatherV(own, { sizes: Array<number>(size).fill(2) })
  using dealt = await comm.allToAll(x)
  const next = comm.send(own)
  using previous = await comm.recv([2], 'float32')
  await next
  const half = await nccl.split({ color: rank === 0 ? 0 : 1 })
  using there = (await half?.allReduce(own)) as Tensor
  // Left as it is: the rank ends with it.
  const total = Tensor.zeros([2], { device })
  const recording = await nccl.record(async () => {
    using both = await nccl.allReduce(own)
    device.add(total, both, { out: total })
  })
  for (let i = 0; i < 3; i++) await recording.launch()
  const found = [sum, part, all, dealt, previous, there, total].map(values)
  tell({ rank, describe: comm.describe(), found: await Promise.all(found) })
}

/** A rank ends in the middle, while the others wait for what it has a part in. */
async function leaves({ comm, device, rank }: NcclContext): Promise<void> {
  using x = Tensor.full([100], 1, { device })
  using y = await comm.allReduce(x)
  try {
    if (rank === 1) {
      setTimeout(() => process.kill(process.pid, 'SIGKILL'), 300)
    }
    await y.data()
    tell({ rank, code: 'none' })
  } catch (error) {
    const { code, rank: who } = error as RankmeshError
    tell({ rank, code, who })
    throw error
  }
}

try {
  await launch({ ranks: Number(ranks), placement, device: 'cuda', timeoutMs: 30_000 }, async (context) => {
    // Ranks of one machine would take their own kernels.
    const nccl = await createDeviceComm('nccl', context)
    const comm = new Communicator(context.host, nccl, context.device)
    await (what === 'leaves' ? leaves : collectives)({ ...context, nccl, comm })
  })
} catch (error) {
  tell({ ended: (error as RankmeshError).code })
}

// tune: measures what a wait for a device costs against a byte, so that the choice between one-shot and two-shot fits this machine.
import { Tensor } from '../../core/tensor.ts'
import { type AlgorithmName, STEP_BYTES } from '../algorithms.ts'
import type { DeviceComm, TuneReport } from '../device-comm.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Member } from './member.ts'

const SMALL = 1 << 10
const LARGE = 1 << 18
const ROUNDS = 3

/** By what the group consists of: adapters and the number of ranks on each device. */
const known = new Map<string, TuneReport>()

/**
 * Collective. First screens correctness: both algorithms must give the same bits, else two-shot is never chosen. Then times, and all ranks
 * take the figures of rank 0. A group on one device, or of two, has nothing to choose. The verdict is kept for groups of the same make.
 */
export async function tune(member: Member, comm: DeviceComm, options: MeetOptions = {}): Promise<TuneReport> {
  const { group, host, rank } = member
  const topology = group.sites.map(({ adapter, ranks }) => `${adapter}x${ranks.length}`).join('+')
  const before = await host.broadcast(known.get(topology) ?? null, options)
  const report = before ?? (group.sites.length < 3 ? idle(topology) : await measure(member, comm, topology))
  group.stepBytes = report.stepBytes
  if (rank === 0) known.set(topology, report)
  await host.barrier(options)
  return report
}

function idle(topology: string): TuneReport {
  return { topology, bitsEqual: true, stepBytes: STEP_BYTES, smallMilliseconds: 0, largeMilliseconds: 0 }
}

async function measure({ device, host, rank }: Member, comm: DeviceComm, topology: string): Promise<TuneReport> {
  const values = Float32Array.from({ length: LARGE }, (_, i) => Math.fround(Math.sin(i * (rank + 1)) * 2 ** (i % 17)))
  using large = Tensor.from(values, { device })
  using small = large.narrow(0, 0, SMALL)
  const bits = async (algorithm: AlgorithmName): Promise<Uint8Array> => {
    using y = await comm.allReduce(large, { algorithm })
    return y.bytes()
  }
  const [one, two] = [await bits('one-shot'), await bits('two-shot')]
  const equal = one.every((byte, i) => byte === two[i])
  const bitsEqual = (await host.allReduce(equal ? 1 : 0, 'min')) === 1
  const best = async (x: Tensor): Promise<number> => {
    let milliseconds = Number.POSITIVE_INFINITY
    for (let round = 0; round < ROUNDS; round++) {
      await host.barrier()
      const start = performance.now()
      using y = await comm.allReduce(x, { algorithm: 'one-shot' })
      await y.bytes()
      milliseconds = Math.min(milliseconds, performance.now() - start)
    }
    return milliseconds
  }
  const [smallMilliseconds, largeMilliseconds] = await host.broadcast([await best(small), await best(large)] as [number, number])
  // A small call is one wait; what a large one takes beyond it goes to its bytes.
  const bytesPerMillisecond = (LARGE * 4) / Math.max(largeMilliseconds - smallMilliseconds, 1e-3)
  const stepBytes = bitsEqual ? Math.round(Math.min(smallMilliseconds * bytesPerMillisecond, 2 ** 30)) : Number.MAX_SAFE_INTEGER
  return { topology, bitsEqual, stepBytes, smallMilliseconds, largeMilliseconds }
}

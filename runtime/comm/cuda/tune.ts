// tune: measures one-shot against two-shot over peers' memory, so that the choice between them fits this machine.
import { Tensor } from '../../core/tensor.ts'
import type { AlgorithmName } from '../algorithms.ts'
import type { DeviceComm, TuneReport } from '../device-comm.ts'
import type { MeetOptions } from '../rendezvous.ts'
import type { Member } from './member.ts'
import type { PeerPlan } from './plan.ts'

const ROUNDS = 3
/** Calls of a round, which the device is waited for once. */
const CALLS = 4
const NEVER: number = Number.MAX_SAFE_INTEGER

/** By what the group consists of: devices, the number of ranks on each, and their workspaces. */
const known = new Map<string, TuneReport>()

/**
 * Collective. First screens correctness: both ways must give the same bits, else two-shot is never chosen. Then times both, at sizes from those of
 * packets to that of a workspace; all ranks take the verdict of rank 0, and it is kept for groups of the same make. `stepBytes` are the most that go
 * one-shot; the milliseconds are those of one-shot calls of the smallest and of the largest size.
 */
export async function tune(member: Member, comm: Pick<DeviceComm, 'allReduce'>, options: MeetOptions = {}): Promise<TuneReport> {
  const { group, host, rank } = member
  const { home, dataBytes, packetBytes, bounds } = group.plan
  const devices = group.sites.map(({ adapter, ranks }) => `${adapter}x${ranks.length}`).join('+')
  const topology = `${devices}, ${home === 'pinned' ? 'pinned memory' : "devices' memory"}, ${dataBytes}+${packetBytes} bytes`
  const before = await host.broadcast(known.get(topology) ?? null, options)
  const idle = { topology, bitsEqual: true, stepBytes: bounds.oneShot, smallMilliseconds: 0, largeMilliseconds: 0 }
  const report = before ?? (group.sites.length < 2 ? idle : await measure(member, comm, topology))
  if (rank === 0) known.set(topology, report)
  group.plan = { ...group.plan, bounds: { ...bounds, oneShot: report.stepBytes } }
  await host.barrier(options)
  return report
}

async function measure({ device, host, rank, group }: Member, comm: Pick<DeviceComm, 'allReduce'>, topology: string): Promise<TuneReport> {
  const sizes = sizesOf(group.plan)
  const most = sizes.at(-1) as number
  const values = Float32Array.from({ length: most / 4 }, (_, i) => Math.fround(Math.sin(i * (rank + 1)) * 2 ** (i % 17)))
  using large = Tensor.from(values, { device })
  const bits = async (algorithm: AlgorithmName): Promise<Uint8Array> => {
    using y = await comm.allReduce(large, { algorithm })
    return y.bytes()
  }
  const [one, two] = [await bits('one-shot'), await bits('two-shot')]
  const equal = one.every((byte, i) => byte === two[i])
  const bitsEqual = (await host.allReduce(equal ? 1 : 0, 'min')) === 1
  const best = async (bytes: number, algorithm: AlgorithmName): Promise<number> => {
    using x = large.narrow(0, 0, bytes / 4)
    let milliseconds = Number.POSITIVE_INFINITY
    for (let round = 0; round < ROUNDS; round++) {
      await host.barrier()
      const start = performance.now()
      for (let call = 0; call < CALLS; call++) (await comm.allReduce(x, { algorithm })).dispose()
      await device.sync()
      milliseconds = Math.min(milliseconds, (performance.now() - start) / CALLS)
    }
    return milliseconds
  }
  const times: (readonly [oneShot: number, twoShot: number])[] = []
  for (const size of sizes) times.push([await best(size, 'one-shot'), await best(size, 'two-shot')])
  const largest = times.findLastIndex(([oneShot, twoShot]) => oneShot <= twoShot)
  const bound = largest === sizes.length - 1 ? NEVER : (sizes[largest] ?? 0)
  const [small, last] = [times[0], times.at(-1)] as [readonly [number, number], readonly [number, number]]
  const own = { topology, bitsEqual, stepBytes: bitsEqual ? bound : NEVER, smallMilliseconds: small[0], largeMilliseconds: last[0] }
  return host.broadcast(own)
}

/** Bytes of operands, each twice the one before, that are too many for packets and fit in a workspace; at least one. */
function sizesOf({ bounds, dataBytes, packetBytes }: PeerPlan): number[] {
  const sizes = [Math.floor(dataBytes / 16) * 16]
  while ((sizes[0] as number) / 2 > Math.min(bounds.packets, packetBytes)) sizes.unshift(Math.floor((sizes[0] as number) / 32) * 16)
  return sizes
}

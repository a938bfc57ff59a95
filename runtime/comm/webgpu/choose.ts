// Which algorithm a reduction takes: the pure choice of algorithms.ts for this group, and a line that says why.
import { platform } from '#platform'
import { type AlgorithmName, chooseAlgorithm, type ReductionCall } from '../algorithms.ts'
import type { Wire } from '../wire.ts'
import type { WebGpuGroup } from './group.ts'
import type { Member } from './member.ts'

/** The algorithm for a call, the same on every rank. With RANKMESH_DEBUG=comm each choice is a line on standard error. */
export function algorithmFor(member: Member, call: ReductionCall, wanted?: AlgorithmName): AlgorithmName {
  const { algorithm, reason } = wanted ? { algorithm: wanted, reason: 'asked for' } : chooseAlgorithm(call, member.group.stepBytes)
  const { collective, count, dtype, ranksPerDevice } = call
  if (!member.host.wire || member.rank === 0)
    debug(`${collective} of ${count} ${dtype} over ${ranksPerDevice.join('+')} ranks: ${algorithm}, ${reason}`)
  return algorithm
}

/** A group in one line: ranks, devices, how they are joined, and what its reductions take. */
export function describeGroup({ sites, stepBytes }: WebGpuGroup, wire: Wire | null): string {
  const ranks = sites.reduce((n, site) => n + site.ranks.length, 0)
  const devices = sites.map((site) => `${site.ranks.length} on ${site.adapter}`).join(', ')
  const joined = wire ? `, joined by ${wire.about}` : ''
  const how = sites.length === 1 ? 'on-device' : `one-shot or two-shot through the host, a wait counted as ${stepBytes} bytes`
  return `${ranks} rank${ranks === 1 ? '' : 's'} (${devices}${joined}): reductions ${how}`
}

/** With RANKMESH_DEBUG=comm, a line on standard error. */
export function debug(line: string): void {
  if (platform.env('RANKMESH_DEBUG') === 'comm') console.error(`rankmesh: ${line}`)
}

// HostGroup: how ranks that were started apart find each other: an id made once, carried to the others as bytes, joined by each.
import { ArgumentError, BackendUnavailableError, checkInteger, describe } from '../core/errors.ts'
import { type HostComm, LocalHostComm } from './host.ts'
import { MAX_TIMEOUT_MS, Rendezvous } from './rendezvous.ts'
import { DEFAULT_TIMEOUT_MS, World } from './world.ts'

export type HostBackend = 'local'

/** A group that is being formed. */
export interface HostGroup {
  /** The id as bytes, for `importHostGroup` elsewhere. */
  export(): Uint8Array
  /**
   * Joins as `rank` of `size`. Every rank joins once.
   * @throws ERR_ARGUMENT on every rank where they give different sizes or one rank twice; ERR_TIMEOUT where one does not come.
   */
  connect(options: { size: number; rank: number; timeoutMs?: number }): Promise<HostComm>
}

/** Groups that are not complete yet, by id; one that could not be formed stays, to tell those who come late. */
const forming = new Map<string, { rendezvous: Rendezvous; joined: Set<number> }>()

/** @throws ERR_BACKEND_UNAVAILABLE for a backend that is not built. */
export function createHostGroup(backend: HostBackend): HostGroup {
  if (backend !== 'local') throw new BackendUnavailableError(`Host backend ${describe(backend)} is not built; this version has 'local'`)
  return localGroup(`local:${globalThis.crypto.randomUUID()}`)
}

/** @throws ERR_ARGUMENT for bytes that are no group's. */
export function importHostGroup(id: Uint8Array): HostGroup {
  const text = id instanceof Uint8Array ? new TextDecoder().decode(id) : ''
  if (!text.startsWith('local:')) throw new ArgumentError(`Expected the bytes of HostGroup.export() but received ${describe(text || id)}`)
  return localGroup(text)
}

function localGroup(id: string): HostGroup {
  return { export: () => new TextEncoder().encode(id), connect: (options) => connect(id, options) }
}

async function connect(
  id: string,
  { size, rank, timeoutMs = DEFAULT_TIMEOUT_MS }: { size: number; rank: number; timeoutMs?: number },
): Promise<HostComm> {
  checkInteger('size', size, 1)
  checkInteger('rank', rank, 0, size - 1)
  checkInteger('timeoutMs', timeoutMs, 1, MAX_TIMEOUT_MS)
  const group = forming.get(id) ?? { rendezvous: newRendezvous(size, timeoutMs), joined: new Set() }
  forming.set(id, group)
  const { rendezvous, joined } = group
  const have = rendezvous.members.length
  const wrong =
    have !== size
      ? `This group has ${have} ranks, but rank ${rank} joined with size ${size}; all ranks must give the same size`
      : joined.has(rank) && `Rank ${rank} joined this group twice; every rank joins once`
  if (wrong) {
    const error = new ArgumentError(wrong, { rank })
    rendezvous.end(error)
    throw error
  }
  joined.add(rank)
  const comm = new LocalHostComm(rendezvous, rank)
  await comm.meet('connect()', { payload: null }, (all) => all, { timeoutMs })
  forming.delete(id)
  return comm
}

function newRendezvous(size: number, timeoutMs: number): Rendezvous {
  return new Rendezvous(
    new World(size, timeoutMs),
    Array.from({ length: size }, (_, i) => i),
  )
}

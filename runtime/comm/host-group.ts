// HostGroup: how ranks that were started apart find each other: an id made once, carried to the others as bytes, joined by each.
import { platform } from '#platform'
import { ArgumentError, BackendUnavailableError, checkInteger, describe } from '../core/errors.ts'
import { type HostComm, LocalHostComm } from './host.ts'
import { MAX_TIMEOUT_MS, Rendezvous } from './rendezvous.ts'
import type { SharedPlace } from './wire/shared-place.ts'
import { SharedWire } from './wire/shared-wire.ts'
import { shmPlace } from './wire/shm-place.ts'
import { threadPlace } from './wire/thread-place.ts'
import { waitFor } from './wire.ts'
import { WireHostComm } from './wire-host.ts'
import { DEFAULT_TIMEOUT_MS, World } from './world.ts'

/** Ranks that share a thread, are threads of one process, or processes of one machine and user. */
export type HostBackend = 'local' | 'thread' | 'shm'

/** A group that is being formed. */
export interface HostGroup {
  /** The id as bytes, for `importHostGroup` elsewhere. */
  export(): Uint8Array
  /**
   * Joins as `rank` of `size`. Every rank joins once.
   * @throws ERR_ARGUMENT on every rank where they give different sizes or one rank twice; ERR_TIMEOUT where one does not come; the signal's reason.
   */
  connect(options: { size: number; rank: number; timeoutMs?: number; signal?: AbortSignal | undefined }): Promise<HostComm>
}

/** Groups that are not complete yet, by id; one that could not be formed stays, to tell those who come late. */
const forming = new Map<string, { rendezvous: Rendezvous; joined: Set<number> }>()

/** @throws ERR_BACKEND_UNAVAILABLE for a backend that is not built, or not here. */
export function createHostGroup(backend: HostBackend): HostGroup {
  if (!BACKENDS.includes(backend)) {
    throw new BackendUnavailableError(`Host backend ${describe(backend)} is not built; this version has ${BACKENDS.join(', ')}`)
  }
  const group = groupOf(backend, globalThis.crypto.randomUUID())
  if (backend !== 'local') placeOf(backend) // throws where it is not here
  return group
}

/** @throws ERR_ARGUMENT for bytes that are no group's. */
export function importHostGroup(id: Uint8Array): HostGroup {
  const text = id instanceof Uint8Array ? new TextDecoder().decode(id) : ''
  const [backend, name] = text.split(':') as [string, string | undefined]
  if (!(BACKENDS as readonly string[]).includes(backend) || !name || !/^[\w.-]+$/.test(name)) {
    throw new ArgumentError(`Expected the bytes of HostGroup.export() but received ${describe(text || id)}`)
  }
  return groupOf(backend as HostBackend, name)
}

const BACKENDS: readonly HostBackend[] = ['local', 'thread', 'shm']

function groupOf(backend: HostBackend, name: string): HostGroup {
  const id = `${backend}:${name}`
  return {
    export: () => new TextEncoder().encode(id),
    async connect({ size, rank, timeoutMs = DEFAULT_TIMEOUT_MS, signal }) {
      checkInteger('size', size, 1)
      checkInteger('rank', rank, 0, size - 1)
      checkInteger('timeoutMs', timeoutMs, 1, MAX_TIMEOUT_MS)
      if (backend === 'local') return connectLocal(id, { size, rank, timeoutMs, signal })
      const members = Array.from({ length: size }, (_, i) => i)
      const wire = await SharedWire.connect(
        placeOf(backend),
        name,
        { rank, members, parent: null },
        waitFor(timeoutMs, 'connect()', signal),
      )
      return new WireHostComm(wire, timeoutMs)
    },
  }
}

/** @throws ERR_BACKEND_UNAVAILABLE where the addon is needed and absent. */
function placeOf(backend: 'thread' | 'shm'): SharedPlace {
  const addon = platform.addon()
  if (backend === 'thread') return threadPlace(addon)
  if (addon?.features().shm.available) return shmPlace(addon)
  throw new BackendUnavailableError(
    `Host backend 'shm' needs the native addon: ${addon ? addon.features().shm.detail : 'it is not built; run `npm run build:native`'}`,
  )
}

async function connectLocal(
  id: string,
  { size, rank, timeoutMs, signal }: { size: number; rank: number; timeoutMs: number; signal: AbortSignal | undefined },
): Promise<HostComm> {
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
  await comm.meet('connect()', { payload: null }, (all) => all, { timeoutMs, signal })
  forming.delete(id)
  return comm
}

function newRendezvous(size: number, timeoutMs: number): Rendezvous {
  return new Rendezvous(
    new World(size, timeoutMs),
    Array.from({ length: size }, (_, i) => i),
  )
}

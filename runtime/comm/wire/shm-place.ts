// Memory for the processes of one machine: segments of the system's shared memory, private to the user, without a name once all have them.
import type { Addon, Segment } from '../../core/addon.ts'
import { BackendUnavailableError, OutOfMemoryError, TimeoutError } from '../../core/errors.ts'
import type { Wait } from '../wire.ts'
import type { PlacedMemory, SharedPlace } from './shared-place.ts'

/** Milliseconds between looks for a segment that another rank makes. */
const LOOK_MS = 2

export function shmPlace(addon: Addon): SharedPlace {
  return {
    backend: 'shm',
    about: 'processes of one machine over a shared segment, native waits and sums',
    isSameProcess: false,
    waiter: addon,
    addon,
    async memory(name, byteLength, lead, wait, look) {
      const segment = (lead && create(addon, name, byteLength)) || (await open(addon, name, byteLength, wait, look))
      return placed(segment, lead)
    },
  }
}

/** The name of a segment among all of the system's. */
export function segmentName(name: string): string {
  return `rankmesh-${name.replaceAll('.', '-')}`
}

/** Null for a second one that leads: it finds the first one's segment, and fails to claim its rank there. */
function create(addon: Addon, name: string, byteLength: number): Segment | null {
  try {
    return addon.createSegment(segmentName(name), byteLength)
  } catch (cause) {
    if (codeOf(cause) === 'EEXIST') return null
    if (codeOf(cause) === 'ENOSPC') throw new OutOfMemoryError((cause as Error).message, { cause })
    throw new BackendUnavailableError(`No shared memory: ${cause instanceof Error ? cause.message : cause}`, { cause })
  }
}

async function open(
  addon: Addon,
  name: string,
  byteLength: number,
  { deadline, timeoutMs, call, signal }: Wait,
  look: () => void,
): Promise<Segment> {
  for (;;) {
    signal?.throwIfAborted()
    look()
    try {
      const segment = addon.openSegment(segmentName(name))
      if (segment.buffer.byteLength > 0) return segment
      segment.close()
    } catch (cause) {
      if (codeOf(cause) !== 'ENOENT') {
        throw new BackendUnavailableError(`No shared memory of ${byteLength} bytes: ${cause instanceof Error ? cause.message : cause}`, {
          cause,
        })
      }
    }
    if (performance.now() >= deadline) {
      throw new TimeoutError(`Rank 0 did not make the group's memory within ${timeoutMs} ms, in ${call}`, { rank: 0 })
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
  }
}

function placed(segment: Segment, lead: boolean): PlacedMemory {
  return {
    words: new Int32Array(segment.buffer),
    onRival: () => {},
    claim(rank) {
      try {
        segment.claim(rank)
        return true
      } catch {
        return false
      }
    },
    alive: (rank) => segment.claimed(rank),
    done: () => {
      if (lead) segment.unlink()
    },
    close: () => {
      if (lead) segment.unlink()
      segment.close()
    },
  }
}

function codeOf(error: unknown): unknown {
  return error instanceof Error && 'code' in error ? error.code : undefined
}

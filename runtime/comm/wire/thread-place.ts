// Memory for the worker threads of one process: shared array buffers, handed around by name over a broadcast channel.
import type { Addon } from '../../core/addon.ts'
import { OutOfMemoryError, TimeoutError } from '../../core/errors.ts'
import type { Wait } from '../wire.ts'
import type { PlacedMemory, SharedPlace } from './shared-place.ts'
import { atomicsWaiter } from './waiter.ts'

type Message = { kind: 'want' } | { kind: 'have'; buffer: SharedArrayBuffer; made: string }

/** Milliseconds between looks while another rank makes the memory. */
const LOOK_MS = 50

/** With the addon, waits and sums are native; all threads of a process have it, or none. */
export function threadPlace(addon: Addon | null): SharedPlace {
  return {
    backend: 'thread',
    about: `worker threads over shared memory, ${addon ? 'native' : 'JavaScript'} waits and sums`,
    isSameProcess: true,
    waiter: addon ?? atomicsWaiter,
    addon,
    memory: (name, byteLength, lead, wait, look) => (lead ? made(name, byteLength) : found(name, wait, look)),
  }
}

async function made(name: string, byteLength: number): Promise<PlacedMemory> {
  const buffer = sharedBytes(byteLength)
  const channel = new BroadcastChannel(`rankmesh:${name}`)
  const own = globalThis.crypto.randomUUID()
  let rival = (): void => {}
  const offer = (): void => channel.postMessage({ kind: 'have', buffer, made: own } satisfies Message)
  channel.onmessage = (event) => {
    const message = (event as { data: Message }).data
    if (message.kind === 'want') offer()
    else if (message.made !== own) {
      offer()
      rival()
    }
  }
  offer()
  return memoryOf(
    buffer,
    () => channel.close(),
    (listener) => {
      rival = listener
    },
  )
}

/** @throws ERR_OUT_OF_MEMORY */
function sharedBytes(byteLength: number): SharedArrayBuffer {
  try {
    return new SharedArrayBuffer(byteLength)
  } catch (cause) {
    throw new OutOfMemoryError(`No shared memory of ${byteLength} bytes: ${cause instanceof Error ? cause.message : cause}`, { cause })
  }
}

async function found(name: string, { deadline, timeoutMs, call, signal }: Wait, look: () => void): Promise<PlacedMemory> {
  const channel = new BroadcastChannel(`rankmesh:${name}`)
  let buffer: SharedArrayBuffer | undefined
  let wake = (): void => {}
  channel.onmessage = (event) => {
    const message = (event as { data: Message }).data
    if (message.kind === 'have') buffer = message.buffer
    wake()
  }
  try {
    channel.postMessage({ kind: 'want' } satisfies Message)
    while (!buffer) {
      signal?.throwIfAborted()
      look()
      const left = deadline - performance.now()
      if (left <= 0) throw new TimeoutError(`Rank 0 did not make the group's memory within ${timeoutMs} ms, in ${call}`, { rank: 0 })
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, Math.min(left, LOOK_MS))
        wake = () => {
          clearTimeout(timer)
          resolve()
        }
      })
    }
    return memoryOf(
      buffer,
      () => {},
      () => {},
    )
  } finally {
    channel.close()
  }
}

function memoryOf(buffer: SharedArrayBuffer, done: () => void, onRival: PlacedMemory['onRival']): PlacedMemory {
  // Whoever watches a thread end tells its group (launch does); nothing in memory changes by itself.
  return { words: new Int32Array(buffer), onRival, claim: () => true, alive: () => true, done, close: done }
}

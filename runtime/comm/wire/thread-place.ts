// Memory for the worker threads of one process: shared array buffers, handed around by name over a broadcast channel.
import type { Addon } from '../../core/addon.ts'
import { TimeoutError } from '../../core/errors.ts'
import type { Wait } from '../wire.ts'
import type { PlacedMemory, SharedPlace } from './shared-wire.ts'
import { atomicsWaiter } from './waiter.ts'

type Message = { kind: 'want' } | { kind: 'have'; buffer: SharedArrayBuffer; made: string }

/** With the addon, waits and sums are native; all threads of a process have it, or none. */
export function threadPlace(addon: Addon | null): SharedPlace {
  return {
    backend: 'thread',
    about: `worker threads over shared memory, ${addon ? 'native' : 'JavaScript'} waits and sums`,
    isSameProcess: true,
    waiter: addon ?? atomicsWaiter,
    addon,
    memory: (name, byteLength, lead, wait) => (lead ? made(name, byteLength) : found(name, wait)),
  }
}

async function made(name: string, byteLength: number): Promise<PlacedMemory> {
  const channel = new BroadcastChannel(`rankmesh:${name}`)
  const buffer = new SharedArrayBuffer(byteLength)
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

function found(name: string, { deadline, timeoutMs, call }: Wait): Promise<PlacedMemory> {
  const channel = new BroadcastChannel(`rankmesh:${name}`)
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => {
        channel.close()
        reject(new TimeoutError(`Rank 0 did not make the group's memory within ${timeoutMs} ms, in ${call}`, { rank: 0 }))
      },
      Math.max(1, deadline - performance.now()),
    )
    channel.onmessage = (event) => {
      const message = (event as { data: Message }).data
      if (message.kind !== 'have') return
      clearTimeout(timer)
      channel.close()
      resolve(
        memoryOf(
          message.buffer,
          () => {},
          () => {},
        ),
      )
    }
    channel.postMessage({ kind: 'want' } satisfies Message)
  })
}

function memoryOf(buffer: SharedArrayBuffer, done: () => void, onRival: PlacedMemory['onRival']): PlacedMemory {
  // Whoever watches a thread end tells its group (launch does); nothing in memory changes by itself.
  return { words: new Int32Array(buffer), onRival, claim: () => true, alive: () => true, done, close: done }
}

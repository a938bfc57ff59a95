// Waiting for words of shared memory to change: by Atomics, where the addon is not built. The addon's own waits have the same shape.
import { type Addon, ALARMED, ARRIVED, EXPIRED, type LaneWords, type WaitResult } from '../../core/addon.ts'
import { LINE } from './layout.ts'

export type Waiter = Pick<Addon, 'post' | 'wait' | 'waitAsync' | 'ring'>

/** Looks before a thread sleeps: a few microseconds. */
const SPINS = 200

/** `Atomics.waitAsync`, which the ES2023 library does not declare. */
type WaitAsync = (words: Int32Array, at: number, value: number, milliseconds: number) => { async: boolean; value: Promise<string> | string }
const waitAsync = (Atomics as unknown as { waitAsync: WaitAsync }).waitAsync

/** Whether round `epoch` has come for a counter that wraps. */
export function reached(words: Int32Array, at: number, epoch: number): boolean {
  return ((Atomics.load(words, at) - epoch) | 0) >= 0
}

/** The epoch word of the first member that has not reached `epoch`, or -1. */
export function lagging({ words, at, members }: LaneWords, epoch: number): number {
  for (let m = 0; m < members; m++) if (!reached(words, at + m * LINE, epoch)) return at + m * LINE
  return -1
}

export const atomicsWaiter: Waiter = {
  post({ words, at, me }, epoch) {
    Atomics.store(words, at + me * LINE, epoch)
    Atomics.notify(words, at + me * LINE)
  },

  wait(lane, epoch, alarm, microseconds) {
    const { words } = lane
    for (let spin = 0; spin < SPINS; spin++) if (lagging(lane, epoch) < 0) return ARRIVED
    const end = performance.now() + microseconds / 1000
    for (;;) {
      const at = lagging(lane, epoch)
      if (at < 0) return ARRIVED
      if (Atomics.load(words, lane.alarm) !== alarm) return ALARMED
      const left = end - performance.now()
      if (left <= 0) return EXPIRED
      const seen = Atomics.load(words, at)
      if (!reached(words, at, epoch)) Atomics.wait(words, at, seen, left)
    }
  },

  async waitAsync(lane, epoch, alarm, milliseconds) {
    const { words } = lane
    const end = performance.now() + milliseconds
    // A wait that is only asynchronous does not keep the event loop alive; a timer does.
    const alive = setTimeout(() => {}, milliseconds + 1000)
    try {
      for (;;) {
        const at = lagging(lane, epoch)
        if (at < 0) return ARRIVED
        if (Atomics.load(words, lane.alarm) !== alarm) return ALARMED
        const left = end - performance.now()
        if (left <= 0) return EXPIRED as WaitResult
        const seen = Atomics.load(words, at)
        if (!reached(words, at, epoch)) await waitAsync(words, at, seen, left).value
      }
    } finally {
      clearTimeout(alive)
    }
  },

  ring(words, alarm, lanes) {
    Atomics.add(words, alarm, 1)
    for (const { at, members } of lanes) for (let m = 0; m < members; m++) Atomics.notify(words, at + m * LINE)
  },
}

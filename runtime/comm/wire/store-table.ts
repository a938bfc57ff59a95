// The keys and values of a store, and who waits for a key to come.
import { float64, float64At } from './store-protocol.ts'

interface Waiter {
  /** The connection that waits. */
  owner: object
  timer: ReturnType<typeof setTimeout>
  done(value: Uint8Array | null): void
}

export class StoreTable {
  readonly #values = new Map<string, Uint8Array>()
  readonly #waiters = new Map<string, Set<Waiter>>()

  get(key: string): Uint8Array | null {
    return this.#values.get(key) ?? null
  }

  set(key: string, value: Uint8Array): Uint8Array {
    this.#values.set(key, value)
    const waiters = this.#waiters.get(key) ?? []
    this.#waiters.delete(key)
    for (const { timer, done } of waiters) {
      clearTimeout(timer)
      done(value)
    }
    return value
  }

  /** Adds to a number that starts at 0 (both as 8 bytes); gives the sum. */
  add(key: string, amount: Uint8Array): Uint8Array {
    const old = this.#values.get(key)
    return this.set(key, float64((old?.byteLength === 8 ? float64At(old) : 0) + float64At(amount)))
  }

  delete(key: string): boolean {
    return this.#values.delete(key)
  }

  /** Calls `done` with the value once the key is set, or with null when the time is over. */
  wait(owner: object, key: string, timeoutMs: number, done: (value: Uint8Array | null) => void): void {
    const waiters = this.#waiters.get(key) ?? new Set()
    this.#waiters.set(key, waiters)
    const timer = setTimeout(() => {
      this.#drop(key, waiters, waiter)
      done(null)
    }, timeoutMs)
    ;(timer as { unref?(): void }).unref?.()
    const waiter: Waiter = { owner, timer, done }
    waiters.add(waiter)
  }

  /** Nobody waits on behalf of `owner` any more; of anybody, where absent. */
  forget(owner?: object): void {
    for (const [key, waiters] of this.#waiters)
      for (const waiter of waiters) if (owner === undefined || waiter.owner === owner) this.#drop(key, waiters, waiter)
  }

  #drop(key: string, waiters: Set<Waiter>, waiter: Waiter): void {
    clearTimeout(waiter.timer)
    waiters.delete(waiter)
    if (waiters.size === 0) this.#waiters.delete(key)
  }
}

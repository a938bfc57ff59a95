// Scope: what one collective has on its way: the memory it takes, given back however it ends, and the crossing between its devices.
import type { Crossing } from './crossing.ts'

export class Scope {
  readonly crossing: Crossing
  readonly #scratch: { release(): void }[] = []
  readonly #results: Disposable[] = []

  constructor(crossing: Crossing) {
    this.crossing = crossing
  }

  /** Memory for as long as the collective runs. */
  scratch<T extends { release(): void }>(storage: T): T {
    this.#scratch.push(storage)
    return storage
  }

  /** What the ranks will get: theirs when the collective succeeds, given back when it fails. */
  result<T extends Disposable>(tensor: T): T {
    this.#results.push(tensor)
    return tensor
  }

  /** Runs `body` with a scope of its own. */
  static async run<R>(crossing: Crossing, body: (scope: Scope) => Promise<R>): Promise<R> {
    const scope = new Scope(crossing)
    try {
      return await body(scope)
    } catch (error) {
      for (const tensor of scope.#results) tensor[Symbol.dispose]()
      throw error
    } finally {
      for (const storage of scope.#scratch) storage.release()
    }
  }
}

// Indices of numbers from the largest number down, one at a time: a heap, since a few of many are wanted and sorting all would be waste.

/** Equal numbers come in order of their index. Building takes time linear in the count, each `pop` logarithmic. */
export class Descending {
  readonly #values: Float32Array
  readonly #heap: Int32Array
  #size: number

  /** `values` must not change while indices are taken. */
  constructor(values: Float32Array) {
    this.#values = values
    this.#size = values.length
    this.#heap = Int32Array.from(values, (_, i) => i)
    for (let i = (this.#size >> 1) - 1; i >= 0; i--) this.#sink(i)
  }

  /** Index of the largest number not yet taken; only while there is one. */
  pop(): number {
    const top = this.#heap[0] as number
    this.#heap[0] = this.#heap[--this.#size] as number
    this.#sink(0)
    return top
  }

  #sink(from: number): void {
    const heap = this.#heap
    const moved = heap[from] as number
    let at = from
    for (let child = 2 * at + 1; child < this.#size; child = 2 * at + 1) {
      if (child + 1 < this.#size && this.#before(heap[child + 1] as number, heap[child] as number)) child++
      if (!this.#before(heap[child] as number, moved)) break
      heap[at] = heap[child] as number
      at = child
    }
    heap[at] = moved
  }

  #before(a: number, b: number): boolean {
    const x = this.#values[a] as number
    const y = this.#values[b] as number
    return x > y || (x === y && a < b)
  }
}

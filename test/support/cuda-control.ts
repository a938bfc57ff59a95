// How tests tell the double of CUDA's driver what to be and where to fail, while it runs, and learn what it has counted.
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'

/** What the double counts, of all processes that were started with this one's variables. */
const COUNTS = [
  'allocations',
  'bytes',
  'hostAllocations',
  'streams',
  'events',
  'graphs',
  'libraries',
  'imports',
  'registered',
  'virtual',
  'multicastStores',
  'kernels',
  'copies',
  'reports',
] as const
export type Counts = Record<(typeof COUNTS)[number], number>

const CONTROL_BYTES = 8192
const COUNTS_AT = 4096

/** The settings and faults of the double, and what it counts: see test/native/doubles/settings.h. */
export class Control {
  readonly path: string
  readonly #file: number
  #generation = 0

  constructor(path: string) {
    this.path = path
    this.#file = openSync(path, 'w+')
    writeSync(this.#file, new Uint8Array(CONTROL_BYTES))
  }

  /** Adds settings, divided by `;`, such as `fail cuMemAlloc 3 2` or `lose 0 5 719`; calls from now on heed them. `forget` takes faults back. */
  plant(settings: string): void {
    const text = new TextEncoder().encode(settings)
    writeSync(this.#file, Uint32Array.of(text.length), 0, 4, 4)
    writeSync(this.#file, text, 0, text.length, 8)
    writeSync(this.#file, Uint32Array.of(++this.#generation), 0, 4, 0) // last: it says that the text is there
  }

  counts(): Counts {
    const bytes = readFileSync(this.path)
    return Object.fromEntries(COUNTS.map((name, i) => [name, Number(bytes.readBigInt64LE(COUNTS_AT + 8 * i))])) as Counts
  }

  close(): void {
    closeSync(this.#file)
  }
}

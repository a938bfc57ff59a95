// Times kernels with timestamp queries: while it is on, each dispatch is a pass of its own between two timestamps.
import type { KernelTime } from '../device.ts'

const MAX_QUERIES = 4096

export class Profiler {
  readonly #device: GPUDevice
  readonly #queries: GPUQuerySet
  readonly #totals = new Map<string, KernelTime>()
  readonly #reading: Promise<void>[] = []
  #kernels: string[] = []

  constructor(device: GPUDevice) {
    this.#device = device
    this.#queries = device.createQuerySet({ type: 'timestamp', count: MAX_QUERIES })
  }

  /** The timestamps around the next dispatch; undefined once a submit has more dispatches than can be timed. */
  next(kernel: string): GPUComputePassTimestampWrites | undefined {
    const at = this.#kernels.length * 2
    if (at + 2 > MAX_QUERIES) return undefined
    this.#kernels.push(kernel)
    return { querySet: this.#queries, beginningOfPassWriteIndex: at, endOfPassWriteIndex: at + 1 }
  }

  /** Adds the copy of the timestamps to a submit; returns what to do once it is submitted. */
  resolve(encoder: GPUCommandEncoder): () => void {
    const kernels = this.#kernels
    this.#kernels = []
    if (kernels.length === 0) return () => {}
    const bytes = kernels.length * 16
    const resolved = this.#device.createBuffer({ size: bytes, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC })
    const staging = this.#device.createBuffer({ size: bytes, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST })
    encoder.resolveQuerySet(this.#queries, 0, kernels.length * 2, resolved, 0)
    encoder.copyBufferToBuffer(resolved, 0, staging, 0, bytes)
    return () => {
      this.#reading.push(this.#collect(kernels, staging, resolved))
    }
  }

  async finish(): Promise<KernelTime[]> {
    await Promise.all(this.#reading)
    this.#queries.destroy()
    return [...this.#totals.values()].sort((a, b) => b.nanoseconds - a.nanoseconds)
  }

  async #collect(kernels: readonly string[], staging: GPUBuffer, resolved: GPUBuffer): Promise<void> {
    await staging.mapAsync(GPUMapMode.READ)
    const times = new BigUint64Array(staging.getMappedRange())
    kernels.forEach((kernel, i) => {
      const total = this.#totals.get(kernel) ?? { kernel, runs: 0, nanoseconds: 0 }
      total.runs++
      total.nanoseconds += Math.max(0, Number((times[2 * i + 1] as bigint) - (times[2 * i] as bigint)))
      this.#totals.set(kernel, total)
    })
    staging.destroy()
    resolved.destroy()
  }
}

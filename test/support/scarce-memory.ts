// Devices whose memory runs out on demand: each allocation of a collective fails in turn, and every rank must hear of it and lose nothing.
import { expect } from 'vitest'
import { OutOfMemoryError } from '../../runtime/core/errors.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'

/** Runs a collective again and again, failing its first allocation, then its second, ... until none is left; returns how many there were. */
export type Attempt = (collective: () => Promise<unknown>) => Promise<number>

export class ScarceMemory {
  readonly #devices: readonly WebGpuDevice[]
  /** Allocations of the pools that pass; the one after them fails, once. */
  #left = Number.POSITIVE_INFINITY

  constructor(devices: readonly WebGpuDevice[]) {
    this.#devices = devices
    for (const { gpu } of devices) {
      const allocateSlices = gpu.pool.allocateSlices.bind(gpu.pool)
      gpu.pool.allocateSlices = (count, bytes) => {
        if (this.#left-- > 0) return allocateSlices(count, bytes)
        this.#left = Number.POSITIVE_INFINITY
        throw new OutOfMemoryError('no memory for this test')
      }
    }
  }

  /** Four ranks on `used` make `body`'s operands, then attempt the collective: ERR_OUT_OF_MEMORY on every rank, and nothing left over. */
  async failEach(used: readonly WebGpuDevice[], body: (context: RankContext, attempt: Attempt) => Promise<number>): Promise<void> {
    const before = this.#live()
    const failures = await launch({ ranks: 4, devices: used }, (context) =>
      body(context, (collective) => this.#attempt(context, collective)),
    )
    expect(failures[0], 'allocations that were made to fail').toBeGreaterThan(0)
    expect(new Set(failures).size).toBe(1)
    expect(this.#live()).toBe(before)
  }

  async #attempt({ comm }: RankContext, collective: () => Promise<unknown>): Promise<number> {
    for (let failed = 0; ; failed++) {
      await comm.barrier()
      const held = this.#live()
      await comm.barrier()
      this.#left = failed
      try {
        const result = await collective()
        if (result instanceof Tensor) result.dispose()
        return failed
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_OUT_OF_MEMORY' })
        await comm.barrier()
        expect(this.#live(), `after failure ${failed}`).toBe(held)
      } finally {
        this.#left = Number.POSITIVE_INFINITY
      }
    }
  }

  #live(): number {
    return this.#devices.reduce((n, { gpu }) => n + gpu.pool.liveBuffers, 0)
  }
}

// What the WebGPU device asks of the place it runs in: one adapter, and a way to act after the current turn of the event loop.
import type { Addon } from '../../core/addon.ts'
import type { GpuJs } from '../cpu/gpu-js.ts'

export interface AdapterChoice {
  /** Part of an adapter's name, or its index in the order the system lists them. */
  adapter?: string | number
  /** Asks for the software adapter even where a GPU is present. */
  software?: boolean
}

export interface FoundAdapter {
  adapter: GPUAdapter
  /** Must stay reachable as long as any device of the adapter lives (Dawn frees itself with it). */
  instance: object
  /** A CPU program behind the WebGPU interface: right, and slow. */
  software: boolean
}

export interface Platform {
  /** @throws ERR_BACKEND_UNAVAILABLE with what was tried and why it failed. */
  findAdapter(choice: AdapterChoice): Promise<FoundAdapter>
  /** Runs `task` once all promise reactions that are ready now have run. */
  afterTurn(task: () => void): void
  env(name: string): string | undefined
  /** A value as bytes for another thread or process, as structured clones go. @throws where it cannot be cloned. */
  serialize(value: unknown): Uint8Array<ArrayBuffer>
  /** What `serialize` made of a value. `bytes` lie in memory of their own. */
  deserialize(bytes: Uint8Array<ArrayBuffer>): unknown
  /** Calls `listener` when this thread or process ends by itself; returns how to stop that. */
  onExit(listener: () => void): () => void
  /** Tells whoever listens to this diagnostics channel. */
  publish(channel: string, event: object): void
  /** The native addon, where it is built. */
  addon(): Addon | null
  /** The npm package gpu.js. @throws ERR_BACKEND_UNAVAILABLE where it is not installed. */
  gpuJs(): GpuJs
  /** The machine's name and the bytes of its memory that are free; null where a program is not told. */
  hostMemory(): { machine: string; free: number } | null
}

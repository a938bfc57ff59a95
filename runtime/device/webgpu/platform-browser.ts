// The WebGPU platform of a page or worker: the browser's own `navigator.gpu`.
import { BackendUnavailableError } from '../../core/errors.ts'
import type { AdapterChoice, FoundAdapter, Platform } from './platform.ts'

const channel = new MessageChannel()
const tasks: (() => void)[] = []
channel.port1.addEventListener('message', () => tasks.shift()?.())
channel.port1.start()

export const platform: Platform = {
  async findAdapter({ software }: AdapterChoice): Promise<FoundAdapter> {
    const gpu = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu
    if (!gpu)
      throw new BackendUnavailableError(
        'This browser has no WebGPU (navigator.gpu is missing); a secure context (https or localhost) is needed',
      )
    const adapter =
      (software ? null : await gpu.requestAdapter({ powerPreference: 'high-performance' })) ??
      (await gpu.requestAdapter({ forceFallbackAdapter: true }))
    if (!adapter) throw new BackendUnavailableError('This browser offers no WebGPU adapter; check that hardware acceleration is on')
    return { adapter, instance: gpu, software: adapter.info.isFallbackAdapter || adapter.info.architecture === 'swiftshader' }
  },
  afterTurn(task: () => void): void {
    tasks.push(task)
    channel.port2.postMessage(null)
  },
  env: () => undefined,
  serialize() {
    throw new BackendUnavailableError('In a page all ranks share one thread; values are not carried between threads')
  },
  deserialize: (bytes) => bytes,
  onExit: () => () => {},
  publish: () => {},
  addon: () => null,
  gpuJs() {
    throw new BackendUnavailableError("gpu.js is loaded in Node alone; in a page openDevice('cpu') multiplies by loops")
  },
  hostMemory: () => null,
}

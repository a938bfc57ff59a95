// The WebGPU platform of Node: npm `webgpu` (Dawn) on the system's GPU, else on the software Vulkan that @sparticuz/chromium carries.
import { channel } from 'node:diagnostics_channel'
import { createRequire } from 'node:module'
import { hostname } from 'node:os'
import { deserialize, serialize } from 'node:v8'
import { loadAddon } from '../../core/addon-node.ts'
import { BackendUnavailableError, describe } from '../../core/errors.ts'
import type { AdapterChoice, FoundAdapter, Platform } from './platform.ts'
import { loadVulkan, withSoftwareVulkan } from './software-vulkan.ts'

type Dawn = { create(options: string[]): GPU; globals: Record<string, unknown> }

/** The search that is under way. One at a time: an environment variable chooses the software driver. */
let search: Promise<unknown> = Promise.resolve()

/** To be called when this thread or process ends; one listener for all. */
const exits = new Set<() => void>()
const onExit = (): void => {
  for (const listener of [...exits]) listener()
}

export const platform: Platform = {
  findAdapter(choice: AdapterChoice): Promise<FoundAdapter> {
    const found = search.then(() => find(choice))
    search = found.catch(() => {})
    return found
  },
  afterTurn: (task) => void setImmediate(task),
  env: (name) => process.env[name],
  serialize(value) {
    const { buffer, byteOffset, byteLength } = serialize(value)
    return new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength)
  },
  deserialize: (bytes) => deserialize(bytes),
  onExit(listener) {
    if (exits.size === 0) process.on('exit', onExit)
    exits.add(listener)
    return () => {
      exits.delete(listener)
      if (exits.size === 0) process.off('exit', onExit)
    }
  },
  publish(name, event) {
    const found = channel(name)
    if (found.hasSubscribers) found.publish(event)
  },
  addon: loadAddon,
  gpuJs() {
    try {
      return createRequire(import.meta.url)('gpu.js')
    } catch (cause) {
      throw new BackendUnavailableError('The npm package `gpu.js` did not load; install it with `npm install gpu.js`', { cause })
    }
  },
  hostMemory: () => ({ machine: hostname(), free: process.availableMemory() }),
}

async function find({ adapter, software = false }: AdapterChoice): Promise<FoundAdapter> {
  const dawn = await loadDawn()
  const tried: string[] = []
  const system = software ? 'the software adapter was asked for' : loadVulkan()
  if (system === undefined) {
    const found = await request(dawn, adapter, 'system', tried)
    if (found) return found
  } else if (!software) tried.push(`system Vulkan: ${system}`)
  // An index counts the system's adapters; a name may be the software one's.
  if (typeof adapter !== 'number') {
    const found = await withSoftwareVulkan(() => request(dawn, adapter, 'software Vulkan', tried))
    if (typeof found === 'object' && found !== null) return found
    if (found) tried.push(`software Vulkan: ${found}`)
  }
  if (adapter !== undefined) {
    throw new BackendUnavailableError(`No WebGPU adapter matches ${describe(adapter)}; tried: ${tried.join('; ')}`)
  }
  throw new BackendUnavailableError(
    `No WebGPU adapter. Tried: ${tried.join('; ')}. Install a Vulkan driver, or \`npm install --save-dev @sparticuz/chromium\` for a software adapter`,
  )
}

async function loadDawn(): Promise<Dawn> {
  try {
    const name = 'webgpu'
    const dawn = (await import(name)) as Dawn
    for (const [key, value] of Object.entries(dawn.globals)) if (!(key in globalThis)) Object.assign(globalThis, { [key]: value })
    return dawn
  } catch (cause) {
    throw new BackendUnavailableError('The npm package `webgpu` did not load; install it with `npm install webgpu@0.6.2`', { cause })
  }
}

async function request(dawn: Dawn, adapter: string | number | undefined, where: string, tried: string[]): Promise<FoundAdapter | null> {
  const name = typeof adapter === 'number' ? (await adapterNames(dawn))[adapter] : adapter
  if (adapter !== undefined && name === undefined) {
    tried.push(`${where}: it lists ${(await adapterNames(dawn)).length} adapters`)
    return null
  }
  // Browsers coarsen timestamps to hide what a page computes; a program that times its own kernels has nothing to hide from itself.
  const flags = ['disable-dawn-features=timestamp_quantization']
  const instance = dawn.create(name === undefined ? flags : [...flags, `adapter=${name}`])
  try {
    const found = await instance.requestAdapter({ powerPreference: 'high-performance' })
    if (found) {
      const software = found.info.isFallbackAdapter || found.info.architecture === 'swiftshader'
      if (software) softenPolling()
      return { adapter: found, instance, software }
    }
    tried.push(`${where}: requestAdapter gave none`)
  } catch (cause) {
    tried.push(`${where}: ${cause instanceof Error ? cause.message.replaceAll('\n', ' ') : String(cause)}`)
  }
  return null
}

/** Names of the system's adapters, in its order. Dawn lists them only in the message about a name it does not know. */
async function adapterNames(dawn: Dawn): Promise<string[]> {
  try {
    await dawn.create(['adapter=(list of adapters)']).requestAdapter()
  } catch (error) {
    return [...String(error).matchAll(/name: '([^']*)'/g)].map((m) => m[1] as string)
  }
  return []
}

let softened = false

/**
 * Dawn polls for completion with a busy `setImmediate` loop. On a software adapter that loop takes the cores the driver computes on, so
 * from its second turn on each poll waits a little. Only Dawn's own callback, a nameless native function, is slowed.
 */
function softenPolling(): void {
  if (softened) return
  softened = true
  const real = globalThis.setImmediate
  const cell = new Int32Array(new SharedArrayBuffer(4))
  let turns = 0
  let polling = false
  const patched = (callback: (...args: unknown[]) => void, ...args: unknown[]): NodeJS.Immediate => {
    if (callback.name !== '' || !Function.prototype.toString.call(callback).includes('[native code]')) return real(callback, ...args)
    turns = polling ? turns + 1 : 0
    return real(() => {
      if (turns > 1) Atomics.wait(cell, 0, 0, turns < 40 ? 0.01 : 0.2)
      polling = true
      try {
        callback()
      } finally {
        polling = false
      }
    })
  }
  globalThis.setImmediate = Object.assign(patched, real) as typeof setImmediate
}

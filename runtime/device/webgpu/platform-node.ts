// The WebGPU platform of Node: npm `webgpu` (Dawn) on the system's GPU, else on the software Vulkan that @sparticuz/chromium carries.
import { BackendUnavailableError, describe } from '../../core/errors.ts'
import type { AdapterChoice, FoundAdapter, Platform } from './platform.ts'
import { loadVulkan, useSoftwareVulkan } from './software-vulkan.ts'

type Dawn = { create(options: string[]): GPU; globals: Record<string, unknown> }

export const platform: Platform = {
  async findAdapter(choice: AdapterChoice): Promise<FoundAdapter> {
    const dawn = await loadDawn()
    const tried: string[] = []
    if (!choice.software) {
      const missing = loadVulkan()
      if (missing) tried.push(`system Vulkan: ${missing}`)
      else {
        const found = await request(dawn, choice, tried)
        if (found) return found
      }
      if (choice.adapter !== undefined) {
        throw new BackendUnavailableError(`No WebGPU adapter matches ${describe(choice.adapter)}; tried: ${tried.join('; ')}`)
      }
    }
    const missing = useSoftwareVulkan()
    if (missing) tried.push(`software Vulkan: ${missing}`)
    else {
      softenPolling()
      const found = await request(dawn, {}, tried)
      if (found) return found
    }
    throw new BackendUnavailableError(
      `No WebGPU adapter. Tried: ${tried.join('; ')}. Install a Vulkan driver, or \`npm install --save-dev @sparticuz/chromium\` for a software adapter`,
    )
  },
  afterTurn: (task) => void setImmediate(task),
  env: (name) => process.env[name],
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

async function request(dawn: Dawn, choice: AdapterChoice, tried: string[]): Promise<FoundAdapter | null> {
  const name = typeof choice.adapter === 'number' ? (await adapterNames(dawn))[choice.adapter] : choice.adapter
  if (choice.adapter !== undefined && name === undefined) {
    tried.push(`the system lists ${(await adapterNames(dawn)).length} adapters`)
    return null
  }
  // Browsers coarsen timestamps to hide what a page computes; a program that times its own kernels has nothing to hide from itself.
  const flags = ['disable-dawn-features=timestamp_quantization']
  const instance = dawn.create(name === undefined ? flags : [...flags, `adapter=${name}`])
  try {
    const adapter = await instance.requestAdapter({ powerPreference: 'high-performance' })
    if (adapter) return { adapter, instance, software: adapter.info.isFallbackAdapter || adapter.info.architecture === 'swiftshader' }
    tried.push('requestAdapter gave none')
  } catch (cause) {
    tried.push(cause instanceof Error ? cause.message.replaceAll('\n', ' ') : String(cause))
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

// GPUDevices that a test makes itself: plain ones, and ones behind a proxy that lets calls fail.
import { platform } from '../../runtime/device/webgpu/platform-node.ts'

/** Dawn's instances must outlive their devices. */
const instances: object[] = []

/** A new GPUDevice, owned by the test. */
export async function rawDevice(): Promise<GPUDevice> {
  const { adapter, instance } = await platform.findAdapter({})
  instances.push(instance)
  return adapter.requestDevice()
}

/** What the proxy does in place of the device: returns undefined to let the device do it. */
export interface Faults {
  /** The answer of the next error scopes with this filter, once each. */
  scope?: (filter: GPUErrorFilter) => GPUError | undefined
  /** Called before a method; may throw. */
  call?: (method: string) => void
}

/** `device`, where `faults` may step in. */
export function faulty(device: GPUDevice, faults: Faults): GPUDevice {
  const filters: GPUErrorFilter[] = []
  return new Proxy(device, {
    get(target, key) {
      const value: unknown = Reflect.get(target, key, target)
      if (typeof value !== 'function') return value
      const method = value.bind(target) as (...args: unknown[]) => unknown
      return (...args: unknown[]) => {
        faults.call?.(String(key))
        if (key === 'pushErrorScope') filters.push(args[0] as GPUErrorFilter)
        if (key !== 'popErrorScope') return method(...args)
        const fault = faults.scope?.(filters.pop() as GPUErrorFilter)
        const answer = method() as Promise<GPUError | null>
        return answer.then((error) => fault ?? error)
      }
    },
  })
}

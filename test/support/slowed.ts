// A device that is slow, for tests of shares by measured speed.
import type { Device } from '../../runtime/device/device.ts'

/** A device that computes every product `times` times. */
export function slowed(fast: Device, times: number): Device {
  const matmul: Device['matmul'] = (x, w, options) => {
    const y = fast.matmul(x, w, options)
    for (let i = 1; i < times; i++) fast.matmul(x, w, { ...options, out: y })
    return y
  }
  return new Proxy(fast, {
    get(target, key) {
      if (key === 'matmul') return matmul
      const value = Reflect.get(target, key, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

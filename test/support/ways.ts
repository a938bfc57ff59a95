// The ways in which one device can run an operation: by other kernels, by other workgroups. Cases are tried on each.
import type { DType } from '../../runtime/core/dtype.ts'
import type { WebGpuDevice } from '../../runtime/device/webgpu/device.ts'
import type { Tuning } from '../../runtime/device/webgpu/gpu.ts'

export interface Way {
  name: string
  run<T>(work: () => Promise<T>): Promise<T>
}

/** A way of products, with the numbers of tokens and the types of x and w to try on it. */
export interface ProductWay extends Way {
  tokens: readonly number[]
  types: readonly (readonly [x: DType, w: DType])[]
  /** It adds all of a sum one by one in float32: errors are a few times those of sums in lanes. */
  oneByOne?: boolean
}

/** Runs work on a WebGPU device that is tuned so meanwhile. */
export function tuned(device: WebGpuDevice, tuning: Partial<Tuning>): Way['run'] {
  const own = { ...device.gpu.tuning }
  return async (work) => {
    Object.assign(device.gpu.tuning, tuning)
    try {
      return await work()
    } finally {
      Object.assign(device.gpu.tuning, own)
    }
  }
}

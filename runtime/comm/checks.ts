// What a rank's own arguments must be, and how a call is written down for comparison with the other ranks' calls.
import { isBlockDType, isFloat } from '../core/dtype.ts'
import { ArgumentError, DeviceError, DTypeError, describe, invalidArgument, ShapeError } from '../core/errors.ts'
import { formatShape, resolveDim, type Shape } from '../core/shape.ts'
import type { Storage, TensorDevice } from '../core/storage.ts'
import { Tensor } from '../core/tensor.ts'
import { mergesOf, slotsOf } from '../core/tree.ts'
import { checkEps, elementType, expectDType, expectShape, floatType } from '../device/checks.ts'
import type { Device } from '../device/device.ts'
import { EngineDevice } from '../device/engine/device.ts'
import { EngineStorage, writableStorage as writableOnCpu } from '../device/engine/memory.ts'
import { WebGpuDevice } from '../device/webgpu/device.ts'
import { GpuStorage, writableStorage } from '../device/webgpu/pool.ts'
import { type FusedNorm, REDUCE_OPS, type ReduceOp, type TreeCut } from './device-comm.ts'

/** Texts that were made before: a step of a model describes the same tensors each time. */
const described = new WeakMap<Tensor, string>()

/** Never throws, whatever was given: what is wrong with it is for the checks to say. */
export function describeTensor(x: unknown): string {
  if (!(x instanceof Tensor)) return describe(x)
  const known = described.get(x)
  if (known !== undefined) return known
  const text = `${formatShape(x.shape)} ${x.dtype}`
  described.set(x, text)
  return text
}

export function describeTree(tree: TreeCut | undefined): string {
  if (tree === undefined) return ''
  return `, tree ${Array.isArray(tree?.spans) ? tree.spans.map((span) => span?.count).join('+') : describe(tree)}`
}

export function describeShape(shape: unknown): string {
  return Array.isArray(shape) ? formatShape(shape) : describe(shape)
}

/** What all views of one device have in common: two devices with the same are one. */
export function memoryOf(device: TensorDevice): object {
  if (device instanceof WebGpuDevice) return device.gpu
  return device instanceof EngineDevice ? device.memory : device
}

/** Nobody may write it any more: it is the result of several ranks. Or, with false, it is about to be another one. */
export function shareStorage(storage: Storage, readOnly: boolean = true): void {
  if (storage instanceof GpuStorage || storage instanceof EngineStorage) storage.readOnly = readOnly
}

/** A tensor on this rank's device, undisposed. */
export function checkHere(device: Device, tensor: Tensor, name: string): void {
  if (device.failure) throw device.failure
  if (!(tensor instanceof Tensor)) throw invalidArgument(name, 'a Tensor', tensor)
  if (memoryOf(tensor.device) !== memoryOf(device)) {
    throw new DeviceError(`Expected ${name} on ${device.name} but it is on ${tensor.device.name}; move it with tensor.to(device)`)
  }
  void tensor.storage // throws where it was disposed
}

export function checkWritten(device: Device, tensor: Tensor, like: Tensor, dtype: Tensor['dtype'], name: string): void {
  checkHere(device, tensor, name)
  expectShape(tensor, like.shape, name)
  expectDType(tensor, dtype, name)
  checkWritable(device, tensor)
}

/** Memory of this rank's device that is no shared result of a collective. */
export function checkWritable(device: Device, { storage }: Tensor): void {
  if (device instanceof WebGpuDevice) writableStorage(device.gpu.pool, storage)
  else if (device instanceof EngineDevice) writableOnCpu(device.memory, storage)
}

export function checkReduced(device: Device, x: Tensor, op: ReduceOp): void {
  checkHere(device, x, 'x')
  if (!REDUCE_OPS.includes(op)) throw invalidArgument('op', REDUCE_OPS.join(', '), op)
  elementType(x.dtype, 'x')
  if (op === 'avg' && !isFloat(x.dtype)) throw new DTypeError(`Expected a float dtype for avg but received ${x.dtype}; use sum`)
}

export function checkMoved(device: Device, x: Tensor, dim: number): void {
  checkHere(device, x, 'x')
  if (isBlockDType(x.dtype)) throw new DTypeError(`Collectives move single elements, not blocks of ${x.dtype}; each rank reads its own`)
  resolveDim(dim, x.shape.length)
}

export function checkParts(shape: Shape, dim: number, size: number): void {
  if ((shape[resolveDim(dim, shape.length)] as number) % size !== 0) {
    throw new ShapeError(`Expected dimension ${dim} of ${formatShape(shape)} to be a multiple of the group's ${size} ranks; pad it`)
  }
}

export function checkFused(device: Device, { x, residual, weight, bias, tree, out }: FusedNorm, eps: number): void {
  checkHere(device, x, 'x')
  if (tree) checkHere(device, residual, 'residual')
  const n = (tree ? residual : x).shape.at(-1)
  if (n === undefined) throw new ShapeError('Expected at least one dimension for x but received a scalar')
  floatType(x.dtype, 'x')
  checkHere(device, residual, 'residual')
  floatType(residual.dtype, 'residual')
  if (tree) checkTree(x, residual.size, tree)
  else expectShape(residual, x.shape, 'residual')
  checkWritten(device, residual, residual, residual.dtype, 'residual')
  for (const [name, tensor] of [
    ['weight', weight],
    ['bias', bias],
  ] as const) {
    if (name === 'bias' && tensor === undefined) continue
    checkHere(device, tensor as Tensor, name)
    expectShape(tensor as Tensor, [n], name)
    expectDType(tensor as Tensor, residual.dtype, name)
  }
  if (out !== undefined) checkWritten(device, out, residual, residual.dtype, 'out')
  checkEps(eps)
}

/** x holds as many sums of `count` elements as the rank with most subtrees has. */
export function checkTree(x: Tensor, count: number, { spans }: TreeCut): void {
  expectDType(x, 'float32', 'x')
  const slots = slotsOf(spans)
  mergesOf(spans, slots) // throws where the spans do not follow one another
  if (x.size !== slots * count) {
    throw new ShapeError(`Expected ${slots} subtree sums of ${count} elements for x but received ${formatShape(x.shape)}`)
  }
  if (count % 4 !== 0) throw new ShapeError(`Expected a multiple of 4 elements for a sum by the tree but received ${count}`)
}

/** Bytes of some memory. */
export interface Bytes {
  readonly buffer: unknown
  readonly offset: number
  readonly byteLength: number
}

/** Two operands that one call writes may not share bytes. */
export function checkApart(a: Bytes, b: Bytes, names: string): void {
  if (a.buffer === b.buffer && a.offset < b.offset + b.byteLength && b.offset < a.offset + a.byteLength) {
    throw new ArgumentError(`Expected ${names} to be different memory but they overlap; give each a tensor of its own`)
  }
}

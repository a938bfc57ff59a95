// What the collectives over parts demand: lengths for each rank, rows dealt out, blocks at a pitch, peers.
import { ArgumentError, CollectiveMismatchError, checkInteger, invalidArgument, ShapeError } from '../core/errors.ts'
import { formatShape, resolveDim, type Shape } from '../core/shape.ts'
import { Tensor } from '../core/tensor.ts'
import type { Device } from '../device/device.ts'
import { checkMoved, checkParts, checkReduced, describeTensor } from './checks.ts'
import type { Pitched, ReduceOp } from './device-comm.ts'

/** One length for each rank; zero is one. */
export function checkSizes(sizes: readonly number[], ranks: number, name = 'sizes'): void {
  if (!Array.isArray(sizes) || sizes.length !== ranks || !sizes.every((n) => Number.isSafeInteger(n) && n >= 0)) {
    throw invalidArgument(name, `a list of ${ranks} non-negative integers, one for each rank,`, sizes)
  }
}

/** True for sizes that cut x as reduceScatter does. */
export function isEven(sizes: readonly number[], ranks: number, x: Tensor, dim: number): boolean {
  if (!Array.isArray(sizes) || sizes.length !== ranks || !(x instanceof Tensor)) return false
  return sizes.every((n) => n === sizes[0]) && x.shape.at(dim) === (sizes[0] as number) * ranks
}

export function lengthAt(shape: Shape, dim: number): number {
  return shape[resolveDim(dim, shape.length)] as number
}

/** A tensor as ranks must agree on it: without its length along dim. */
export function describeOpen(x: unknown, dim: number): string {
  if (!(x instanceof Tensor)) return describeTensor(x)
  const at = dim < 0 ? dim + x.shape.length : dim
  return `[${x.shape.map((n, i) => (i === at ? '*' : n)).join(', ')}] ${x.dtype}`
}

/** Lengths that x brings to allGatherV as this rank. */
export function checkGathered(device: Device, list: readonly Tensor[], dim: number, { rank, size, sizes }: SizesOfRank): void {
  if (list.length === 0) throw invalidArgument('x', 'a tensor, or a list of at least one', list)
  if (sizes !== undefined) checkSizes(sizes, size)
  for (const tensor of list) {
    checkMoved(device, tensor, dim)
    if (sizes && sizes[rank] !== lengthAt(tensor.shape, dim)) {
      throw new ShapeError(
        `Expected dimension ${dim} of ${formatShape(tensor.shape)} to be sizes[${rank}] = ${sizes[rank]}; each rank brings as many as sizes says`,
      )
    }
  }
}

export interface SizesOfRank {
  rank: number
  size: number
  sizes: readonly number[] | undefined
}

/** Lengths into which reduceScatterV cuts x. */
export function checkCut(device: Device, x: Tensor, op: ReduceOp, dim: number, sizes: readonly number[], ranks: number): void {
  checkReduced(device, x, op)
  checkSizes(sizes, ranks)
  const sum = sizes.reduce((a: number, b: number) => a + b, 0)
  if (lengthAt(x.shape, dim) !== sum) {
    throw new ShapeError(`Expected dimension ${dim} of ${formatShape(x.shape)} to be the sum of sizes ${formatShape(sizes)}, ${sum}`)
  }
}

/** How a rank deals its rows out, and what it expects of the others. */
export interface Splits {
  splits: readonly number[]
  outputSplits: readonly number[] | undefined
}

/** The rows of x for each rank: equal ones where no splits are given. */
export function checkDealt(
  device: Device,
  x: Tensor,
  ranks: number,
  { splits, outputSplits }: { splits: readonly number[] | undefined; outputSplits: readonly number[] | undefined },
): Splits {
  checkMoved(device, x, 0)
  if (outputSplits !== undefined) checkSizes(outputSplits, ranks, 'outputSplits')
  const rows = x.shape[0] as number
  if (splits === undefined) {
    checkParts(x.shape, 0, ranks)
    return { splits: Array<number>(ranks).fill(rows / ranks), outputSplits }
  }
  checkSizes(splits, ranks, 'splits')
  const sum = splits.reduce((a: number, b: number) => a + b, 0)
  if (sum !== rows) throw new ShapeError(`Expected ${sum} rows, the sum of splits ${formatShape(splits)}, but x is ${formatShape(x.shape)}`)
  return { splits, outputSplits }
}

/** What a rank expects to receive must be what the others send it. */
export function checkReceived(payloads: readonly Splits[]): void {
  for (const [rank, { outputSplits }] of payloads.entries()) {
    const sent = payloads.map(({ splits }) => splits[rank] as number)
    if (outputSplits?.some((n, from) => n !== sent[from])) {
      throw new CollectiveMismatchError(
        `Rank ${rank} of allToAll expects rows ${formatShape(outputSplits)} but is sent ${formatShape(sent)}; outputSplits[s] is splits[${rank}] of rank s`,
        { rank },
      )
    }
  }
}

/** Blocks lie beside each other in each row, or one behind the other; never over each other. */
export function checkLayout({ pitch, stride, width, height }: Pitched, ranks: number, { size, shape }: Tensor): void {
  for (const [name, value] of Object.entries({ pitch, stride, width, height })) checkInteger(name, value, 0)
  if (width * height === 0) return
  const block = (height - 1) * pitch + width
  const beside = stride >= width && (height === 1 || (ranks - 1) * stride + width <= pitch)
  const behind = stride >= block && (height === 1 || pitch >= width)
  if (ranks > 1 ? !beside && !behind : height > 1 && pitch < width) {
    throw new ArgumentError(
      `Blocks of ${height} rows of ${width} at pitch ${pitch} and stride ${stride} overlap; give pitch ≥ ranks * width and stride ≥ width, or pitch ≥ width and stride ≥ height * pitch`,
    )
  }
  const end = (ranks - 1) * stride + block
  if (end > size) throw new ShapeError(`The blocks end at element ${end} but the buffer ${formatShape(shape)} has ${size}; make it larger`)
}

/** A peer cannot be told of a call that names no peer: it throws on its own rank alone. */
export function checkPeer(member: { readonly rank: number; readonly size: number; checkOpen(): void }, name: string, peer: number): void {
  member.checkOpen()
  checkInteger(name, peer, 0, member.size - 1)
  if (peer === member.rank) throw new ArgumentError(`Rank ${peer} cannot send to itself; use the tensor as it is`)
}

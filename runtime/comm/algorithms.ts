// The algorithms of a reduction over devices, as data, and the choice among them: pure functions of what is equal on all ranks.
import { type DType, dtypeSize, isFloat } from '../core/dtype.ts'
import { ArgumentError, invalidArgument } from '../core/errors.ts'
import type { Tensor } from '../core/tensor.ts'
import type { ReduceOp } from './device-comm.ts'

export type AlgorithmName = 'on-device' | 'one-shot' | 'two-shot'

/** What a choice may depend on: everything here is the same on every rank. */
export interface ReductionCall {
  collective: 'allReduce' | 'allReduceResidualBiasRMSNorm'
  /** Elements of one rank's operand. */
  count: number
  dtype: DType
  /** Pieces that cannot be cut: rows of a fused norm, elements otherwise. */
  pieces: number
  /** Ranks on each device, devices by their lowest rank. */
  ranksPerDevice: readonly number[]
}

/** What one device does for a call: messages it takes part in one after the other, bytes between it and the host. */
export interface AlgorithmCost {
  steps: number
  bytesToHost: number
  bytesToDevice: number
}

export interface Algorithm {
  readonly name: AlgorithmName
  readonly about: string
  /** Why it cannot run, or null. */
  refuses(call: ReductionCall): string | null
  /** An upper bound over the devices. */
  cost(call: ReductionCall): AlgorithmCost
}

/** Bytes of one device's partial on its way: float32 where ranks were added before, the operand's own where each device has one rank. */
export function wireBytes({ count, dtype, ranksPerDevice }: ReductionCall): number {
  return (
    count *
    dtypeSize(
      wireType(
        dtype,
        ranksPerDevice.every((ranks) => ranks === 1),
      ),
    )
  )
}

export function wireType(dtype: DType, single: boolean): DType {
  return single || !isFloat(dtype) ? dtype : 'float32'
}

/** Bytes that a device's finished result has: normed rows and residual rows, or the sum. */
function resultBytes({ collective, count, dtype }: ReductionCall): number {
  return count * dtypeSize(dtype) * (collective === 'allReduce' ? 1 : 2)
}

export const ALGORITHMS: readonly Algorithm[] = [
  {
    name: 'on-device',
    about: 'all ranks share a device: one kernel over their slices, nothing leaves it',
    refuses: ({ ranksPerDevice }) => (ranksPerDevice.length > 1 ? 'the group spans several devices' : null),
    cost: () => ({ steps: 0, bytesToHost: 0, bytesToDevice: 0 }),
  },
  {
    name: 'one-shot',
    about: 'every device gets the partials of all others and finishes alone',
    refuses: ({ ranksPerDevice }) => (ranksPerDevice.length < 2 ? 'the group is on one device' : null),
    cost: (call) => {
      const bytes = wireBytes(call)
      return { steps: 1, bytesToHost: bytes, bytesToDevice: (call.ranksPerDevice.length - 1) * bytes }
    },
  },
  {
    name: 'two-shot',
    about: 'each device finishes its own part of all partials, then gets the finished parts of the others',
    refuses: ({ ranksPerDevice, pieces }) => {
      if (ranksPerDevice.length < 2) return 'the group is on one device'
      return pieces < ranksPerDevice.length ? `${pieces} pieces cannot be shared by ${ranksPerDevice.length} devices` : null
    },
    cost: (call) => {
      const devices = call.ranksPerDevice.length
      const part = Math.ceil(call.pieces / devices) / call.pieces
      const bytes = wireBytes(call)
      const finished = Math.ceil(resultBytes(call) * part)
      return { steps: 2, bytesToHost: bytes + finished, bytesToDevice: Math.ceil((devices - 1) * (bytes * part + finished)) }
    },
  },
]

/** A group's reduction of `x`; see ReductionCall. */
export function reductionCall(
  { group }: { group: { sites: readonly { ranks: readonly number[] }[] } },
  collective: ReductionCall['collective'],
  x: Tensor,
  pieces: number,
): ReductionCall {
  const ranksPerDevice = group.sites.map(({ ranks }) => ranks.length)
  return { collective, count: x.size, dtype: x.dtype, pieces, ranksPerDevice }
}

/** @throws ERR_ARGUMENT where the algorithm a caller insists on is none, or cannot run this call. */
export function checkAlgorithm(name: AlgorithmName | undefined, call: ReductionCall): void {
  if (name === undefined) return
  const algorithm = ALGORITHMS.find((candidate) => candidate.name === name)
  if (!algorithm) throw invalidArgument('algorithm', ALGORITHMS.map((candidate) => candidate.name).join(', '), name)
  const reason = algorithm.refuses(call)
  if (reason !== null) throw new ArgumentError(`Algorithm ${name} cannot run ${call.collective} here: ${reason}; leave the choice open`)
}

/** Bytes that one more wait for a device is worth: below this a second step costs more than it saves. */
export const STEP_BYTES: number = 1 << 20

export interface Choice {
  algorithm: AlgorithmName
  reason: string
}

/**
 * The algorithm that moves fewest bytes into a device, a step counted as `stepBytes`; ties go to fewer steps. Two ranks cannot choose
 * differently, since nothing rank-local goes in. `stepBytes` may come from `tune`, which all ranks of a group agree on.
 */
export function chooseAlgorithm(call: ReductionCall, stepBytes: number = STEP_BYTES): Choice {
  const able = ALGORITHMS.filter((algorithm) => algorithm.refuses(call) === null)
  const weighed = able.map((algorithm) => {
    const cost = algorithm.cost(call)
    return { algorithm, cost, weight: cost.bytesToDevice + cost.steps * stepBytes }
  })
  const [best] = weighed.sort((a, b) => a.weight - b.weight || a.cost.steps - b.cost.steps) as [(typeof weighed)[number]]
  const others = weighed.slice(1).map(({ algorithm, cost }) => `${algorithm.name} ${cost.steps} steps, ${cost.bytesToDevice} bytes in`)
  const { steps, bytesToDevice } = best.cost
  const reason =
    able.length === 1
      ? best.algorithm.about
      : `${steps} step${steps === 1 ? '' : 's'}, ${bytesToDevice} bytes into a device (a step counts as ${stepBytes}); against ${others.join('; ')}`
  return { algorithm: best.algorithm.name, reason }
}

/**
 * Whether partials that a wire has brought into host memory are added there, so that a device gets their sum instead of all of them; the bits
 * are the same. Pays for float32 at any size and number of ranks, with the native addon and without; 16-bit partials would first have to be
 * widened, which costs more than it saves. Measured by bench/crossings.mjs.
 */
export function sumsOnHost(op: ReduceOp, dtype: DType): boolean {
  return (op === 'sum' || op === 'avg') && dtype === 'float32'
}

// The collectives that `rankmesh bench` times: how each is set up on a rank, run, checked, and counted in bytes.
import type { DType } from '../core/dtype.ts'
import type { Shape } from '../core/shape.ts'
import { Tensor } from '../core/tensor.ts'
import type { RankContext } from '../scheduler/launch.ts'
import { type BenchOp, BIAS, elementOf, fusedOf, RESIDUAL, reducedOf, unequalOf, valuesOf, WEIGHT, wrongOf } from './bench-values.ts'

/** One size of a collective: what all ranks know. */
export interface Sizing {
  seed: number
  /** Elements, as nccl-tests count them: of a rank's operand, or where that is cut over ranks or put together, of one rank's part. */
  count: number
  dtype: DType
  op: BenchOp
}

/** A collective set up on one rank. */
export interface Prepared<R = unknown> {
  /** Once, until this rank's result is there: on a device, until it has done the work. */
  run(): Promise<R>
  /** Wrong elements of the first run's result. */
  check(result: R): Promise<number>
  /** Gives the result of a run back. */
  release(result: R): void
  dispose(): void
}

export interface Collective {
  /** Operands are combined. */
  reduces: boolean
  /** The size of a call is that of all ranks' parts. */
  parts: boolean
  /** Bus bandwidth as a multiple of size / time, for n ranks. */
  busFactor(n: number): number
  dtypes: readonly DType[]
  ops: readonly BenchOp[]
  prepare(context: RankContext, sizing: Sizing): Promise<Prepared>
}

const DEVICE_DTYPES: readonly DType[] = ['float32', 'bfloat16', 'float16', 'int32', 'uint32']
const HOST_DTYPES: readonly DType[] = ['float32', 'int32', 'uint32']
const DEVICE_OPS: readonly BenchOp[] = ['sum', 'min', 'max', 'avg']
const ROW = 4096
const EPS = 1e-6

const whole = (): number => 1
const twice = (n: number): number => (2 * (n - 1)) / n
const once = (n: number): number => (n - 1) / n

const moves = { reduces: false, ops: ['sum'] as const }
const onDevice = { dtypes: DEVICE_DTYPES, ops: DEVICE_OPS }
const onHost = { dtypes: HOST_DTYPES }

export const COLLECTIVES: Readonly<Record<string, Collective>> = {
  'all-reduce': { ...onDevice, reduces: true, parts: false, busFactor: twice, prepare: allReduce },
  'all-gather': { ...onDevice, ...moves, parts: true, busFactor: once, prepare: allGather },
  'reduce-scatter': { ...onDevice, reduces: true, parts: true, busFactor: once, prepare: reduceScatter },
  broadcast: { ...onDevice, ...moves, parts: false, busFactor: whole, prepare: broadcast },
  reduce: { ...onDevice, reduces: true, parts: false, busFactor: whole, prepare: reduce },
  'all-to-all': { ...onDevice, ...moves, parts: true, busFactor: once, prepare: allToAll },
  fused: { dtypes: ['float32', 'bfloat16', 'float16'], ops: ['sum'], reduces: true, parts: false, busFactor: twice, prepare: fused },
  'host-all-reduce': { ...onHost, ops: ['sum', 'min', 'max'], reduces: true, parts: false, busFactor: twice, prepare: hostAllReduce },
  'host-all-gather': { ...onHost, ...moves, parts: true, busFactor: once, prepare: hostAllGather },
  'host-broadcast': { ...onHost, ...moves, parts: false, busFactor: whole, prepare: hostBroadcast },
  'host-barrier': { ...onHost, ...moves, parts: false, busFactor: whole, prepare: hostBarrier },
}

/** Symmetric memory with this rank's values. */
async function operand({ comm, rank }: RankContext, shape: Shape, { seed, dtype }: Sizing): Promise<Tensor> {
  const x = await comm.allocate(shape, { dtype })
  x.set(valuesOf(seed, rank, x.size, dtype))
  return x
}

/** A collective of tensors; `call` gives a new tensor, one of `own`, or none. */
function onTensors(
  { device }: RankContext,
  own: readonly Tensor[],
  call: () => Promise<Tensor | null>,
  check: (found: ArrayLike<number | bigint>) => number | Promise<number>,
): Prepared<Tensor | null> {
  return {
    run: async () => {
      const result = await call()
      await device.sync()
      return result
    },
    check: async (result) => (result === null ? 0 : check(await result.data())),
    release: (result) => void (result !== null && !own.includes(result) && result.dispose()),
    dispose: () => {
      for (const tensor of own) tensor.dispose()
    },
  }
}

async function allReduce(context: RankContext, sizing: Sizing): Promise<Prepared<Tensor | null>> {
  const { comm, size: ranks } = context
  const x = await operand(context, [sizing.count], sizing)
  const out = await comm.allocate([sizing.count], { dtype: sizing.dtype, shared: true })
  const run = (): Promise<Tensor> => comm.allReduce(x, { op: sizing.op, out })
  return onTensors(context, [x, out], run, (found) => wrongOf(found, reducedOf({ ...sizing, ranks })))
}

async function allGather(context: RankContext, sizing: Sizing): Promise<Prepared<Tensor | null>> {
  const { seed, count, dtype } = sizing
  const x = await operand(context, [count], sizing)
  const run = (): Promise<Tensor> => context.comm.allGather(x, { dim: 0 })
  return onTensors(context, [x], run, (found) => gathered(found, context.size, { seed, count, dtype }))
}

function gathered(found: ArrayLike<number | bigint>, ranks: number, { seed, count, dtype }: Omit<Sizing, 'op'>): number {
  return unequalOf(found, ranks * count, (i) => elementOf(seed, Math.floor(i / count), i % count, dtype))
}

async function reduceScatter(context: RankContext, sizing: Sizing): Promise<Prepared<Tensor | null>> {
  const { comm, rank, size: ranks } = context
  const { count, op } = sizing
  const x = await operand(context, [ranks * count], sizing)
  const run = (): Promise<Tensor> => comm.reduceScatter(x, { dim: 0, op })
  const reference = (): ReturnType<typeof reducedOf> => reducedOf({ ...sizing, ranks, count: ranks * count })
  return onTensors(context, [x], run, (found) => wrongOf(found, reference(), rank * count, count))
}

async function broadcast(context: RankContext, sizing: Sizing): Promise<Prepared<Tensor | null>> {
  const { seed, count, dtype } = sizing
  const x = await operand(context, [count], sizing)
  const run = (): Promise<Tensor> => context.comm.broadcast(x, { src: 0 })
  return onTensors(context, [x], run, (found) => unequalOf(found, count, (i) => elementOf(seed, 0, i, dtype)))
}

async function reduce(context: RankContext, sizing: Sizing): Promise<Prepared<Tensor | null>> {
  const { comm, rank, size: ranks } = context
  const x = await operand(context, [sizing.count], sizing)
  const run = (): Promise<Tensor | null> => comm.reduce(x, { dst: 0, op: sizing.op })
  return onTensors(context, [x], run, (found) => (rank === 0 ? wrongOf(found, reducedOf({ ...sizing, ranks })) : found.length))
}

async function allToAll(context: RankContext, sizing: Sizing): Promise<Prepared<Tensor | null>> {
  const { comm, rank, size: ranks } = context
  const { seed, count, dtype } = sizing
  const x = await operand(context, [ranks, count], sizing)
  const expected = (i: number): number => elementOf(seed, Math.floor(i / count), rank * count + (i % count), dtype)
  return onTensors(
    context,
    [x],
    () => comm.allToAll(x),
    (found) => unequalOf(found, ranks * count, expected),
  )
}

/** Rows of at most 4096: their number is what fits into the count. */
async function fused(context: RankContext, sizing: Sizing): Promise<Prepared<Tensor | null>> {
  const { comm, device, size: ranks } = context
  const { seed, dtype } = sizing
  const hidden = Math.min(sizing.count, ROW)
  const shape = [Math.floor(sizing.count / hidden), hidden]
  const x = await operand(context, shape, sizing)
  const residual = await comm.allocate(shape, { dtype, shared: true })
  const out = await comm.allocate(shape, { dtype, shared: true })
  if (comm.deviceRank === 0) residual.set(valuesOf(seed, ranks + RESIDUAL, x.size, dtype))
  const [bias, weight] = [BIAS, WEIGHT].map((which) => Tensor.from(valuesOf(seed, ranks + which, hidden, dtype), { dtype, device })) as [
    Tensor,
    Tensor,
  ]
  await comm.barrier()
  const run = (): Promise<Tensor> => comm.allReduceResidualBiasRMSNorm({ x, residual, weight, bias, eps: EPS, out })
  return onTensors(context, [x, residual, out, bias, weight], run, async (found) => {
    const reference = fusedOf({ ...sizing, ranks, count: x.size }, hidden, EPS)
    return wrongOf(found, reference.normed) + wrongOf(await residual.data(), reference.residual)
  })
}

type HostValues = Float32Array | Int32Array | Uint32Array

function hostOperand({ seed, count, dtype }: Sizing, rank: number): HostValues {
  const Type = dtype === 'int32' ? Int32Array : dtype === 'uint32' ? Uint32Array : Float32Array
  return Type.from(valuesOf(seed, rank, count, dtype))
}

const nothing = { release: () => {}, dispose: () => {} }

async function hostAllReduce({ host, rank, size: ranks }: RankContext, sizing: Sizing): Promise<Prepared<HostValues>> {
  const x = hostOperand(sizing, rank)
  const op = sizing.op as 'sum' | 'min' | 'max'
  return { ...nothing, run: () => host.allReduce(x, op), check: async (found) => wrongOf(found, reducedOf({ ...sizing, ranks })) }
}

async function hostAllGather({ host, rank, size: ranks }: RankContext, sizing: Sizing): Promise<Prepared<HostValues[]>> {
  const { seed, count, dtype } = sizing
  const x = hostOperand(sizing, rank)
  const check = async (found: HostValues[]): Promise<number> =>
    Math.abs(found.length - ranks) +
    found.reduce((wrong, values, from) => wrong + unequalOf(values, count, (i) => elementOf(seed, from, i, dtype)), 0)
  return { ...nothing, run: () => host.allGather(x), check }
}

async function hostBroadcast({ host, rank }: RankContext, sizing: Sizing): Promise<Prepared<HostValues>> {
  const { seed, count, dtype } = sizing
  const x = hostOperand(sizing, rank)
  const check = async (found: HostValues): Promise<number> => unequalOf(found, count, (i) => elementOf(seed, 0, i, dtype))
  return { ...nothing, run: () => host.broadcast(x, { root: 0 }), check }
}

/** Checked by a rank that comes late: nobody may have left before. Clocks of one machine agree to well within the lateness. */
async function hostBarrier({ host, rank, size: ranks }: RankContext, { seed }: Sizing): Promise<Prepared<void>> {
  const late = seed % ranks
  const now = (): number => performance.timeOrigin + performance.now()
  const check = async (): Promise<number> => {
    if (rank === late) await new Promise((resolve) => setTimeout(resolve, 50))
    const entered = now()
    await host.barrier()
    const left = now()
    const all = await host.allGather({ entered, left })
    return left < Math.max(...all.map((one) => one.entered)) - 5 ? 1 : 0
  }
  return { ...nothing, run: () => host.barrier(), check }
}

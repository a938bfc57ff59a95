// The fused all-reduces over peers' memory: patterns and experts as one kernel a rank. What the kernels do not know is left to the host.
import { dtypeSize } from '../../core/dtype.ts'
import type { Tensor } from '../../core/tensor.ts'
import { elementType } from '../../device/checks.ts'
import { OP, TYPE } from '../../device/engine/commands.ts'
import type { EngineStorage } from '../../device/engine/memory.ts'
import { memoryOf } from '../checks.ts'
import type { FusionEngine } from '../fusion/calls.ts'
import type { RankExperts } from '../fusion/experts.ts'
import { type FusionResult, type FusionResultName, RESULT_NAMES } from '../fusion/options.ts'
import { QUANT } from '../fusion/patterns.ts'
import { bytesOfResult, emptyResult, largestSpecs, type ResultSpec } from '../fusion/results.ts'
import type { RankRows, RowsPlan } from '../fusion/rows.ts'
import type { Operand, Source, Staging } from '../staged/group.ts'
import { type CudaGroup, type Part, placeOf, type Results } from './group.ts'
import { byRank, reduceTo } from './reduce.ts'
import { normNumbers, othersOf, type Rows, recordRows, rowsFit } from './rows.ts'

/** `staged` computes what the kernels do not. */
export function cudaFusion(group: CudaGroup, staged: FusionEngine<Staging, Operand>): FusionEngine<Staging, Operand> {
  return {
    async sum(staging, payloads, args) {
      const [{ plan, x, preGamma }] = payloads as [(typeof payloads)[number]]
      const { useOneshot = 'auto' } = args
      const rounded = plan.shape.roundSums
      if (x.dtype !== plan.spec.dtype || !rowsFit(group, rowsOf(plan))) return staged.sum(staging, payloads, args)
      const algorithm = useOneshot === 'auto' ? undefined : useOneshot ? 'one-shot' : 'two-shot'
      return group.record((results) => {
        const made = group.here.map((rank) => targetsOf(group, results, payloads[rank] as RankRows<Operand>, rank))
        const operands = payloads.map((own) => own.x)
        if (!plan.traits.norm) {
          const to = byRank(group, made, ({ output }) => (output as Made).operand)
          reduceTo(group, results, operands, to, { op: 'sum', algorithm, rounded, options: {} })
          return byRank(group, made, resultOf)
        }
        const given = group.here.map((rank) => ({ reads: [], x: [operands[rank] as Operand] }))
        const parts = partsOf(group, results, payloads, made, given)
        recordRows(group, OP.peerNorm, rowsOf(plan), { algorithm, whole: preGamma !== null, options: {} }, parts)
        results.settle()
        return byRank(group, made, resultOf)
      })
    },
    async experts(staging, payloads) {
      const [{ plan }] = payloads as [RankExperts<Operand>]
      if (!rowsFit(group, rowsOf(plan))) return staged.experts(staging, payloads)
      return group.record((results) => {
        const made = group.here.map((rank) => targetsOf(group, results, payloads[rank] as RankRows<Operand>, rank))
        const given = group.here.map((rank) => {
          const { rows, scale, index, shared, count, k, routed } = payloads[rank] as RankExperts<Operand>
          const reads = [rows, scale, index, shared].map((operand) => operand ?? rows)
          const type = scale ? TYPE[elementType(scale.dtype, 'scale')] : TYPE.f32
          return { reads, x: [], tail: [count, k, routed, type, Number(scale !== null), Number(index !== null), Number(shared !== null)] }
        })
        const parts = partsOf(group, results, payloads, made, given)
        recordRows(group, OP.peerMoe, rowsOf(plan), { whole: true, options: {} }, parts)
        results.settle()
        return byRank(group, made, resultOf)
      })
    },
  }
}

/** A result of one rank: where it goes, and whether the rank named the place. */
interface Made {
  tensor: Tensor
  operand: Operand
  given: boolean
}
type MadeResults = Partial<Record<FusionResultName, Made>>

/** What a rank's kernel is given beside its rows: operands of its own, of `x` each element by who writes it; and their numbers. */
interface Given {
  reads: readonly Operand[]
  x: readonly Operand[]
  tail?: readonly number[]
}

function rowsOf({ spec: { tokens, hidden, dtype } }: RowsPlan): Rows {
  return { rows: tokens, n: hidden, type: TYPE[elementType(dtype, 'rows')], size: dtypeSize(dtype) }
}

function partsOf(
  group: CudaGroup,
  results: Results,
  payloads: readonly RankRows<Operand>[],
  made: readonly MadeResults[],
  given: readonly Given[],
): Part[] {
  const used = given.map(({ reads, x }, i) => {
    const { residualIn, gamma, preGamma } = payloads[group.here[i] as number] as RankRows<Operand>
    const written = Object.values(made[i] as MadeResults).map(({ operand }) => operand)
    return { inPlace: [...x, residualIn as Operand], own: [gamma as Operand, ...(preGamma ? [preGamma] : []), ...reads], written }
  })
  return given.map(({ reads, x, tail = [] }, i) => {
    const rank = group.here[i] as number
    const { plan, residualIn, gamma, preGamma } = payloads[rank] as RankRows<Operand> & { residualIn: Operand; gamma: Operand }
    const { own, inPlace } = used[i] as (typeof used)[number]
    const others = othersOf(used, i)
    const mine = made[i] as MadeResults
    const none = placeOf(gamma)
    const rows = (name: FusionResultName): ReturnType<typeof placeOf> => {
      const to = mine[name]
      return to ? results.place(to.operand, { others, own, inPlace }) : none
    }
    const narrow = (name: FusionResultName, before: boolean): ReturnType<typeof placeOf> => {
      const to = mine[name]
      return to ? results.place(to.operand, { others, own: [...own, ...inPlace] as Source[] }, before) : none
    }
    const { quant, layout, factor, group: size, eps, weightBias, roundSums: rounded } = plan.shape
    const pad = quant === QUANT.fp4 && mine.scaleOut?.given !== true
    const wanted = { out: 'normOut' in mine, sum: 'output' in mine, pre: preGamma !== null }
    const words = { eps, weightBias, quant, layout, factor, group: size, pad, rounded, ...wanted }
    const [h, y, whole] = [rows('residualOut'), rows('normOut'), rows('output')]
    const codes = [narrow('quantOut', false), narrow('scaleOut', quant === QUANT.fp4)]
    const pre = preGamma ? placeOf(preGamma) : none
    const operands = [...[...x, ...reads, residualIn].map(placeOf), h, placeOf(gamma), none, y, whole, ...codes, pre]
    const at = x.length + reads.length
    return { rank, numbers: [...normNumbers(words), ...tail], operands, written: [1, 4, 5, 6, 7].map((j) => at + j) }
  })
}

/** Where a rank's results go: to its own places, to memory of its workspace, or to new memory. */
function targetsOf(group: CudaGroup, results: Results, { plan, targets, workspace }: RankRows<Operand>, rank: number): MadeResults {
  const made: MadeResults = {}
  for (const name of RESULT_NAMES) {
    const spec = plan.results[name]
    if (!spec) continue
    const target = targets[name]
    made[name] = target ? { ...target, given: true } : { ...results.of(rank, spec.shape, spec.dtype, storageOf(name, spec)), given: false }
  }
  return made

  function storageOf(name: FusionResultName, spec: ResultSpec): EngineStorage | null {
    const byteLength = bytesOfResult(spec)
    if (!workspace || byteLength === 0) return null
    const device = group.cuda(rank)
    const largest = largestSpecs(workspace, plan.traits, plan.spec)[name]
    const capacity = largest ? bytesOfResult(largest) : byteLength
    return workspace.result(memoryOf(device), `${name} ${spec.dtype}`, byteLength, capacity, (bytes) => device.storage(bytes))
  }
}

function resultOf(made: MadeResults): FusionResult {
  const result = emptyResult()
  for (const name of RESULT_NAMES) result[name] = made[name]?.tensor
  return result
}

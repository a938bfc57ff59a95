// The fused all-reduces on WebGPU: the sum over ranks with residual, RMSNorm and quantisation, one kernel on each device.
import { dtypeSize } from '../../core/dtype.ts'
import type { Range } from '../../device/webgpu/commands.ts'
import type { Operand } from '../../device/webgpu/launch.ts'
import { reductionCall } from '../algorithms.ts'
import type { FusionEngine } from '../fusion/calls.ts'
import type { RankExperts } from '../fusion/experts.ts'
import type { FusionResult } from '../fusion/options.ts'
import type { RankRows } from '../fusion/rows.ts'
import { algorithmFor } from './choose.ts'
import { elsewhere, emptySlices, type Slices, sliceAt } from './clusters.ts'
import { fusedRows, joinExperts } from './fusion-kernels.ts'
import { spreadResults } from './fusion-results.ts'
import { reduceSlices } from './kernels.ts'
import { type Member, operandsOf } from './member.ts'
import type { Scope } from './scope.ts'
import { twoShotSums } from './two-shot.ts'

export function fusionEngine(member: Member): FusionEngine<Scope, Operand> {
  const { group } = member
  return {
    async sum(scope, payloads, { input, fp32Acc, useOneshot }) {
      const operands = operandsOf(payloads)
      if (fp32Acc === false) return finishRows(member, scope, payloads, await group.side(scope, operands))
      const open = useOneshot === 'auto' || useOneshot === undefined || group.sites.length === 1
      const wanted = open ? undefined : useOneshot ? 'one-shot' : 'two-shot'
      const algorithm = algorithmFor(member, reductionCall(member, 'allReduce', input, Math.ceil(input.size / 4)), wanted)
      const partials = algorithm === 'two-shot' ? await twoShotSums(member, scope, operands) : await group.partials(scope, operands, 'sum')
      return finishRows(member, scope, payloads, partials)
    },
    async experts(scope, payloads) {
      const { tokens, hidden, dtype } = (payloads[0] as RankExperts<Operand>).plan.spec
      const count = tokens * hidden
      const bytes = count * dtypeSize(dtype)
      const operands = payloads.map((): Operand => ({ range: elsewhere(bytes) as Range, dtype, use: 'r', count, padded: true }))
      for (const cluster of group.clusters) {
        const slices = emptySlices(scope, cluster, cluster.ranks.length, bytes, dtype)
        for (const [i, rank] of cluster.ranks.entries()) {
          const y: Operand = { range: sliceAt(slices, i, bytes), dtype, use: 'w', count, padded: true }
          if (count > 0) joinExperts(cluster.sink, payloads[rank] as RankExperts<Operand>, y, hidden)
          operands[rank] = { ...y, use: 'r' }
        }
      }
      return finishRows(member, scope, payloads, await group.partials(scope, operands, 'sum'))
    },
  }
}

/** Runs the kernel on each device over its partials and hands out the results. */
function finishRows(member: Member, scope: Scope, payloads: readonly RankRows<Operand>[], partials: readonly Slices[]): FusionResult[] {
  const { plan } = payloads[0] as RankRows<Operand>
  const { traits, spec, shape } = plan
  return spreadResults(scope, member.group, payloads, plan, (cluster, i, places) => {
    if (spec.tokens === 0 || spec.hidden === 0) return
    const x = partials[i] as Slices
    const { residualIn, gamma, preGamma } = payloads[cluster.ranks[0] as number] as RankRows<Operand>
    const { output, residualOut = null, normOut = null, quantOut = null, scaleOut = null } = places
    if (output && !shape.roundSums) reduceSlices(cluster, x, output, 'sum', 1)
    else if (output) fusedRows(cluster.sink, x, { ...NOTHING, normOut: output }, { ...shape, quant: 0 })
    if (traits.norm) fusedRows(cluster.sink, x, { residualIn, gamma, preGamma, residualOut, normOut, quantOut, scaleOut }, shape)
  })
}

const NOTHING = { residualIn: null, gamma: null, preGamma: null, residualOut: null, quantOut: null, scaleOut: null }

// The fused ends of a mixture-of-experts layer (patterns 6 and 7) against the chain of single operations that gives the same.
import { launch, openDevice, Tensor } from 'rankmesh'
import { adapterLine, check, randomFloats, row, takeTurns, verdict } from './harness.mjs'

export const about =
  'moeAllReduceFusion and moeFinalizeAllReduceFusion at [256, 4096], 4 experts, against single operations (at least 1.3x)'

const ROWS = 256
const HIDDEN = 4096
const EXPERTS = 4

/** Both ways weigh every expert with 1, since the library has no scaled addition to build a chain from. */
async function compare(device, ranks, dtype) {
  const [times] = await launch({ ranks, devices: [device] }, async ({ rank, device, comm }) => {
    const rows = (count) => Tensor.from(randomFloats(count * HIDDEN), { shape: [count, HIDDEN], dtype, device })
    const experts = rows(EXPERTS * ROWS)
    const shared = rows(ROWS)
    const gamma = Tensor.full([HIDDEN], 1, { dtype, device })
    const residualIn = await comm.allocate([ROWS, HIDDEN], { dtype, shared: true })
    if (rank === 0) residualIn.set(new Float32Array(ROWS * HIDDEN))
    const parts = Array.from({ length: EXPERTS }, (_, e) => experts.narrow(0, e * ROWS, ROWS))
    const scale = Tensor.full([EXPERTS, ROWS], 1, { device })
    // Row of expert k for token t: k * ROWS + t, for the finalize pattern as a table and as one list for each k.
    const table = Int32Array.from({ length: ROWS * EXPERTS }, (_, i) => (i % EXPERTS) * ROWS + Math.floor(i / EXPERTS))
    const index = Tensor.from(table, { shape: [ROWS, EXPERTS], dtype: 'int32', device })
    const lists = parts.map((_, k) =>
      Tensor.from(
        Uint32Array.from({ length: ROWS }, (_, t) => k * ROWS + t),
        { device },
      ),
    )
    const x = await comm.allocate([ROWS, HIDDEN], { dtype })
    await comm.barrier()

    const dispose = (tensors) => {
      for (const tensor of tensors) tensor?.dispose()
    }
    const finish = async (pieces) => {
      let sum = device.add(pieces[0], pieces[1])
      for (const piece of [...pieces.slice(2), shared]) {
        const next = device.add(sum, piece, piece === shared ? { out: x } : {})
        sum.dispose()
        sum = next
      }
      const total = await comm.allReduce(x)
      const added = device.add(total, residualIn)
      const norm = device.rmsNorm(added, gamma)
      dispose([total, added])
      return norm
    }
    const ways = {
      reduction: async () => {
        const { normOut, ...others } = await comm.moeAllReduceFusion({
          moeReductionScaleInput: scale,
          moeReductionActiveExpertsTokenInput: experts,
          moeReductionTokenInput: shared,
          residualIn,
          rmsGamma: gamma,
        })
        dispose(Object.values(others))
        return normOut
      },
      'reduction unfused': () => finish(parts),
      finalize: async () => {
        const { normOut, ...others } = await comm.moeFinalizeAllReduceFusion({
          input: experts,
          expandedIdxToPermutedIdx: index,
          sharedExpertOutput: shared,
          residualIn,
          rmsGamma: gamma,
        })
        dispose(Object.values(others))
        return normOut
      },
      'finalize unfused': async () => {
        const gathered = lists.map((ids) => device.embedding(ids, experts, { dtype }))
        const norm = await finish(gathered)
        dispose(gathered)
        return norm
      },
    }
    let reference
    for (const [name, way] of Object.entries(ways)) {
      const norm = await way()
      const answer = await norm.data()
      norm.dispose()
      reference ??= answer
      check(`${name}, rank ${rank}`, answer, reference, dtype === 'float32' ? 1e-5 : 0.1)
    }
    const timed = (way) => async () => {
      const norm = await way()
      await device.sync()
      norm.dispose()
      await comm.barrier()
    }
    return takeTurns(Object.fromEntries(Object.entries(ways).map(([name, way]) => [name, timed(way)])), 7)
  })
  return times
}

export async function run() {
  const device = await openDevice('webgpu')
  adapterLine(device)
  const widths = [12, 10, 6, 10, 12, 8, 8]
  row(['pattern', 'dtype', 'ranks', 'fused ms', 'unfused ms', 'ratio', ''], widths)
  for (const dtype of ['float32', 'bfloat16']) {
    const times = await compare(device, 4, dtype)
    for (const name of ['reduction', 'finalize']) {
      const [fused, unfused] = [times[name], times[`${name} unfused`]]
      const ratio = unfused / fused
      row([name, dtype, 4, fused.toFixed(1), unfused.toFixed(1), `${ratio.toFixed(2)}x`, verdict(ratio >= 1.3)], widths)
    }
  }
  device.dispose()
}

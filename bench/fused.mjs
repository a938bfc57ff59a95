// The fused all-reduce + residual + RMSNorm against the same three operations one after the other.
import { launch, openDevice, Tensor } from 'rankmesh'
import { adapterLine, check, randomFloats, row, takeTurns, verdict } from './harness.mjs'

export const about = 'all-reduce + residual + RMSNorm fused, against the three operations (at least 1.4x)'

const HIDDEN = 4096

async function compare(device, ranks, rows, dtype) {
  const shape = [rows, HIDDEN]
  const [times] = await launch({ ranks, devices: [device] }, async ({ rank, device, comm }) => {
    const x = await comm.allocate(shape, { dtype })
    x.set(randomFloats(rows * HIDDEN))
    const residual = await comm.allocate(shape, { dtype, shared: true })
    const sum = await comm.allocate(shape, { dtype, shared: true })
    const added = await comm.allocate(shape, { dtype, shared: true })
    const out = await comm.allocate(shape, { dtype, shared: true })
    const weight = Tensor.full([HIDDEN], 1, { dtype, device })
    const zero = new Float32Array(rows * HIDDEN)
    const fused = () => comm.allReduceResidualBiasRMSNorm({ x, residual, weight, out })
    const unfused = async () => {
      await comm.allReduce(x, { out: sum })
      device.add(sum, residual, { out: added })
      device.rmsNorm(added, weight, { out })
    }
    const answer = async (run) => {
      if (comm.deviceRank === 0) residual.set(zero)
      await comm.barrier()
      await run()
      return out.data()
    }
    check(`rank ${rank}`, await answer(fused), await answer(unfused), dtype === 'float32' ? 1e-5 : 0.05)
    const timed = (run) => async () => {
      await run()
      await out.narrow(0, 0, 1).data()
    }
    return takeTurns({ fused: timed(fused), unfused: timed(unfused) }, 11)
  })
  return times
}

export async function run() {
  const device = await openDevice('webgpu')
  adapterLine(device)
  const widths = [14, 10, 6, 10, 12, 8, 8]
  row(['shape', 'dtype', 'ranks', 'fused ms', 'unfused ms', 'ratio', ''], widths)
  for (const rows of [16, 256]) {
    for (const dtype of ['float32', 'bfloat16']) {
      for (const ranks of [2, 4, 8]) {
        const { fused, unfused } = await compare(device, ranks, rows, dtype)
        const ratio = unfused / fused
        row(
          [`[${rows}, ${HIDDEN}]`, dtype, ranks, fused.toFixed(2), unfused.toFixed(2), `${ratio.toFixed(2)}x`, verdict(ratio >= 1.4)],
          widths,
        )
      }
    }
  }
  device.dispose()
}

// Bytes a second of the fused kernel against a kernel that only copies, on the same adapter.
import { launch, openDevice, Tensor } from 'rankmesh'
import { adapterLine, randomFloats, row, takeTurns, verdict } from './harness.mjs'

export const about = 'bytes a second of the fused kernel, against a plain copy kernel (at least 0.9)'

const HIDDEN = 4096

async function compare(device, ranks, rows) {
  const shape = [rows, HIDDEN]
  const elements = rows * HIDDEN
  const [result] = await launch({ ranks, devices: [device] }, async ({ rank, device, comm }) => {
    const x = await comm.allocate(shape)
    x.set(randomFloats(elements))
    const residual = await comm.allocate(shape, { shared: true })
    const out = await comm.allocate(shape, { shared: true })
    const copied = await comm.allocate(shape, { shared: true })
    const weight = Tensor.full([HIDDEN], 1, { device })
    // A cast of float32 to float32 is the copy: one load and one store of a quad for each invocation.
    const source = await comm.allocate(shape, { shared: true })
    if (rank === 0) source.set(randomFloats(elements))
    await comm.barrier()
    const timed = (run, result) => async () => {
      await run()
      await result.narrow(0, 0, 1).data()
    }
    const times = await takeTurns(
      {
        fused: timed(() => comm.allReduceResidualBiasRMSNorm({ x, residual, weight, out }), out),
        copy: timed(() => device.cast(source, 'float32', { out: copied }), copied),
      },
      15,
    )
    const bytes = { fused: elements * 4 * (ranks + 3), copy: elements * 4 * 2 }
    return { fused: bytes.fused / times.fused / 1e6, copy: bytes.copy / times.copy / 1e6 }
  })
  return result
}

export async function run() {
  const device = await openDevice('webgpu')
  adapterLine(device)
  const widths = [14, 6, 12, 12, 8, 8]
  row(['shape', 'ranks', 'fused GB/s', 'copy GB/s', 'ratio', ''], widths)
  for (const rows of [16, 256]) {
    for (const ranks of [2, 4, 8]) {
      const { fused, copy } = await compare(device, ranks, rows)
      row(
        [`[${rows}, ${HIDDEN}]`, ranks, fused.toFixed(2), copy.toFixed(2), (fused / copy).toFixed(2), verdict(fused / copy >= 0.9)],
        widths,
      )
    }
  }
  device.dispose()
}

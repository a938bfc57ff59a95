// Each fused all-reduce pattern against the chain that gives the same: the sum, the residual and the norm one after the other, then the codes.
import { AllReduceFusionPattern, createAllReduceFusionWorkspace, launch, openDevice, Tensor } from 'rankmesh'
import { adapterLine, check, randomFloats, row, takeTurns, verdict } from './harness.mjs'

export const about = 'fused all-reduce patterns at [256, 4096], against sum, add, norm (and the same quantiser) one after the other'

const ROWS = 256
const HIDDEN = 4096
const CASES = {
  kAllReduce: {},
  kARResidualRMSNorm: {},
  kARResidualRMSNormFP8Quant: { scaleFactor: 0.02 },
  kARResidualRMSNormFP4Quant: { scaleFactor: 500 },
  kARResidualRMSNormOutFP8Quant: { scaleFactor: 0.02 },
  kARResidualRMSNormOutFP4Quant: { scaleFactor: 500 },
  kARResidualRMSNormPerTokenGroupFP8PackedQuant: { blockQuantGroupSize: 128 },
  kARResidualRMSNormOutPerTokenGroupFP8PackedQuant: { blockQuantGroupSize: 128 },
  kARResidualRMSNormDynamicFP8Quant: {},
  kARResidualRMSNormOutDynamicFP8Quant: {},
}

/**
 * The library has no quantiser on its own. The chain's is the fused kernel on one rank over the normed rows: one more pass over them, which
 * a quantiser makes, and a norm, which it does not. So the chain is told up to the norm too: with a quantiser it can be no faster than that.
 */
async function compare(device, ranks, dtype, name) {
  const shape = [ROWS, HIDDEN]
  const options = CASES[name]
  const pattern = AllReduceFusionPattern[name]
  const [times] = await launch({ ranks, devices: [device] }, async ({ device, comm, rank }) => {
    const workspace = await createAllReduceFusionWorkspace({ comm, maxTokenNum: ROWS, hiddenDim: HIDDEN, dtype })
    const input = workspace.input(ROWS)
    input.set(randomFloats(ROWS * HIDDEN))
    const places = {}
    for (const place of ['residualIn', 'sum', 'added', 'norm', 'nothing'])
      places[place] = await comm.allocate(shape, { dtype, shared: true })
    const { residualIn, sum, added, norm, nothing } = places
    if (comm.deviceRank === 0) for (const place of [residualIn, nothing]) place.set(new Float32Array(ROWS * HIDDEN))
    const gamma = Tensor.full([HIDDEN], 1, { dtype, device })
    const alone = await comm.split({ color: rank })
    await comm.barrier()
    const normed = { residualIn, rmsGamma: gamma, pattern, ...options }
    const release = (result) => {
      for (const tensor of Object.values(result)) tensor?.dispose()
    }
    const fused = async () => comm.allReduceFusion({ input, workspace, ...normed })
    const unfused = async (last = pattern) => {
      await comm.allReduce(input, { out: sum })
      if (pattern === 0) return
      device.add(sum, residualIn, { out: added })
      device.rmsNorm(added, gamma, { out: norm })
      if (last === 1 || rank > 0) return
      release(await alone.allReduceFusion({ ...normed, input: norm, residualIn: nothing }))
    }
    if (pattern <= 1) {
      const found = await fused()
      await unfused()
      const tolerance = dtype === 'float32' ? 1e-5 : 0.05
      check(
        `rank ${rank}`,
        await (pattern === 0 ? found.output : found.normOut).data(),
        await (pattern === 0 ? sum : norm).data(),
        tolerance,
      )
      release(found)
    }
    const timed = (run) => async () => {
      const result = await run()
      if (result) release(result)
      await device.sync()
      await comm.barrier()
    }
    const medians = await takeTurns({ fused: timed(fused), unfused: timed(() => unfused()), normed: timed(() => unfused(1)) }, 9)
    workspace.destroy()
    return medians
  })
  return times
}

export async function run() {
  const device = await openDevice('webgpu')
  adapterLine(device)
  const widths = [50, 10, 6, 10, 12, 8, 8, 14]
  row(['pattern', 'dtype', 'ranks', 'fused ms', 'unfused ms', 'ratio', '', 'to the norm ms'], widths)
  for (const dtype of ['float32', 'bfloat16']) {
    for (const name of Object.keys(CASES)) {
      const { fused, unfused, normed } = await compare(device, 4, dtype, name)
      const ratio = unfused / fused
      row(
        [
          name,
          dtype,
          4,
          fused.toFixed(2),
          unfused.toFixed(2),
          `${ratio.toFixed(2)}x`,
          verdict(ratio >= (name === 'kAllReduce' ? 0.9 : 1)),
          normed.toFixed(2),
        ],
        widths,
      )
    }
  }
  device.dispose()
}

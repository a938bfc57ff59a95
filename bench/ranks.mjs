// N ranks on one device against one rank: decode steps of the bundled model.
import { fileURLToPath } from 'node:url'
import { fileFolder, LanguageModel, launch, openDevice } from 'rankmesh'
import { adapterLine, median, row, verdict } from './harness.mjs'

export const about = 'decode of the bundled model: N ranks on one device against 1 (at most 1.25x at N = 4)'

const STEPS = 32
const ROUNDS = 7
const folder = fileFolder(fileURLToPath(new URL('../examples/models/tiny-shakespeare', import.meta.url)))

/** Milliseconds a token of `ranks` ranks, and the logits of the last step. */
async function decode(device, ranks) {
  const results = await launch({ ranks, devices: [device] }, async (context) => {
    const model = await LanguageModel.load(folder, context, { capacity: 64 + STEPS })
    const prompt = model.encode('First Citizen:\nWe are accounted poor citizens')
    const step = async (ids) => {
      const logits = await model.llama.forward(ids)
      const last = await logits.last()
      logits.dispose()
      return last
    }
    const runs = []
    let last
    for (let round = 0; round < 2; round++) {
      model.llama.truncate(0)
      await step(prompt)
      const start = performance.now()
      for (let i = 0; i < STEPS; i++) last = await step([65 + (i % 26)])
      runs.push((performance.now() - start) / STEPS)
    }
    model.dispose()
    return { milliseconds: runs.at(-1), last } // the first run warms up
  })
  return results[0]
}

export async function run() {
  const device = await openDevice('webgpu')
  adapterLine(device)
  const times = { 1: [], 2: [], 4: [], 8: [] }
  let reference
  for (let round = 0; round < ROUNDS; round++) {
    for (const ranks of Object.keys(times)) {
      const { milliseconds, last } = await decode(device, Number(ranks))
      reference ??= last
      if (last.some((x, i) => Math.abs(x - reference[i]) > 1e-3)) throw new Error(`${ranks} ranks give other logits than one`)
      times[ranks].push(milliseconds)
    }
  }
  const base = median(times[1])
  const widths = [6, 12, 10, 8]
  row(['ranks', 'ms/token', 'of 1 rank', ''], widths)
  for (const [ranks, list] of Object.entries(times)) {
    const ratio = median(list) / base
    row([ranks, median(list).toFixed(2), `${ratio.toFixed(2)}x`, ranks === '4' ? verdict(ratio <= 1.25) : ''], widths)
  }
  device.dispose()
}

// What `deterministic: 'tp-invariant'` costs: the bundled model's decode steps and a prompt, with and without it, in one run.
import { fileURLToPath } from 'node:url'
import { fileFolder, LanguageModel, launch, openDevice } from 'rankmesh'
import { adapterLine, row, takeTurns } from './harness.mjs'

export const about = "the cost of deterministic: 'tp-invariant', decode and prompt of the bundled model"

const STEPS = 24
const folder = fileFolder(fileURLToPath(new URL('../examples/models/tiny-shakespeare', import.meta.url)))

async function compare(device, ranks) {
  const [times] = await launch({ ranks, devices: [device] }, async (context) => {
    const load = (deterministic) => LanguageModel.load(folder, context, { capacity: 256, deterministic })
    const models = { plain: await load(undefined), invariant: await load('tp-invariant') }
    const prompt = Array.from({ length: 128 }, (_, i) => 97 + (i % 26))
    const step = async ({ llama }, ids) => {
      const logits = await llama.forward(ids)
      await logits.last()
      logits.dispose()
    }
    const decode = (model) => async () => {
      model.llama.truncate(0)
      for (let i = 0; i < STEPS; i++) await step(model, [97])
    }
    const read = (model) => async () => {
      model.llama.truncate(0)
      await step(model, prompt)
    }
    const decoded = await takeTurns({ plain: decode(models.plain), invariant: decode(models.invariant) }, 7)
    const prompted = await takeTurns({ plain: read(models.plain), invariant: read(models.invariant) }, 5)
    for (const model of Object.values(models)) model.dispose()
    return { decoded, prompted }
  })
  return times
}

export async function run() {
  const device = await openDevice('webgpu')
  adapterLine(device)
  const widths = [22, 6, 12, 14, 8]
  row(['', 'ranks', 'plain ms', 'invariant ms', 'cost'], widths)
  for (const ranks of [1, 4]) {
    const { decoded, prompted } = await compare(device, ranks)
    const line = (name, { plain, invariant }, per) =>
      row([name, ranks, (plain / per).toFixed(2), (invariant / per).toFixed(2), `${(invariant / plain).toFixed(2)}x`], widths)
    line('decode, a token', decoded, STEPS)
    line('prompt of 128 tokens', prompted, 1)
  }
  device.dispose()
}

// The bundled model writes the same text on the GPU, with any number of ranks, as on the CPU.
import { join } from 'node:path'
import { fileFolder, runModel } from 'rankmesh'

export const folder = fileFolder(join(import.meta.dirname, '../../examples/models/tiny-shakespeare'))

export async function run(report, { quick }) {
  const write = async (device, ranks) => {
    const { text } = await runModel({ folder, ranks, device, prompt: 'ROMEO:\n', maxNewTokens: quick ? 20 : 200, temperature: 0 })
    return text
  }
  const expected = await write('cpu', 1)
  for (const ranks of [1, 2, 4]) {
    await report.check(`greedy text with ${ranks} rank${ranks > 1 ? 's' : ''}`, async () => {
      const text = await write('cuda:0', ranks)
      if (text !== expected) throw new Error(`wrote ${JSON.stringify(text)}, and the CPU ${JSON.stringify(expected)}`)
      return JSON.stringify(text.slice(0, 40))
    })
  }
}

// Evaluates the bundled model on held-out text in this runtime, as its model card defines it: mean negative log-likelihood of a character.
//   node examples/evaluate/main.mjs TEXT_FILE [RANKS] [WINDOWS]
// TEXT_FILE is the whole corpus (its last tenth is held out), or held-out text alone when it is shorter than that tenth.
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { fileFolder, LanguageModel, launch } from 'rankmesh'

const WINDOW = 256
const [file, ranks = '2', windows = 'Infinity'] = process.argv.slice(2)
if (!file) {
  console.error('usage: node examples/evaluate/main.mjs TEXT_FILE [RANKS] [WINDOWS]')
  process.exit(2)
}
const model = fileURLToPath(new URL('../models/tiny-shakespeare/', import.meta.url))
const { heldOut, heldOutFirst40, heldOutStart } = JSON.parse(readFileSync(`${model}evaluation.json`, 'utf8'))
const corpus = readFileSync(file, 'latin1')
const text = corpus.length > heldOutStart ? corpus.slice(heldOutStart) : corpus
const count = Math.min(Math.floor(text.length / WINDOW), Number(windows))

/** Nats that the logits give the tokens which really follow. */
function loss(rows, ids) {
  let nats = 0
  for (let i = 0; i + 1 < ids.length; i++) {
    const top = rows[i].reduce((a, b) => Math.max(a, b))
    const sum = rows[i].reduce((a, b) => a + Math.exp(b - top), 0)
    nats += top + Math.log(sum) - rows[i][ids[i + 1]]
  }
  return nats
}

const [nats] = await launch({ ranks: Number(ranks) }, async (context) => {
  const { rank } = context
  const lm = await LanguageModel.load(fileFolder(model), context, { capacity: WINDOW, maxTokens: WINDOW })
  let total = 0
  for (let i = 0; i < count; i++) {
    const ids = lm.encode(text.slice(i * WINDOW, (i + 1) * WINDOW))
    lm.llama.truncate(0)
    const logits = await lm.llama.forward(ids, { all: true })
    total += loss(await logits.rows(), ids)
    logits.dispose()
    if (rank === 0 && process.stderr.isTTY)
      process.stderr.write(`\r${i + 1} of ${count} windows, ${(total / (i + 1) / (WINDOW - 1)).toFixed(4)} nats\r`)
  }
  return total / count / (WINDOW - 1)
})

const expected = count === heldOut.windows ? heldOut.nats : count === heldOutFirst40.windows ? heldOutFirst40.nats : undefined
console.log(`${count} windows of ${WINDOW} characters over ${ranks} ranks: ${nats.toFixed(6)} nats a character`)
if (expected) console.log(`PyTorch: ${expected}; difference ${(100 * Math.abs(nats / expected - 1)).toFixed(4)} %`)

// node-llama-cpp as it comes from npm, for `npm run bench -- decode`: `node node-llama-cpp.mjs MODULE MODEL THREADS` says a line when it is ready, and
// answers "decode N" and "prefill N" with tokens a second. MODULE is its dist/index.js, installed in a folder of its own.
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

const [path, model, count] = process.argv.slice(2)
const threads = Number(count)
const MOST = 512
/** As long as bench/decode-rank.mjs: the system places the processors by what has run on them for a while. */
const WARM_MS = 700

const { getLlama, LlamaLogLevel } = await import(pathToFileURL(path).href)
const llama = await getLlama({ gpu: false, build: 'never', logLevel: LlamaLogLevel.error, maxThreads: threads })
const loaded = await llama.loadModel({ modelPath: model })
const context = await loaded.createContext({ contextSize: MOST + 64, batchSize: MOST, threads: { ideal: threads, min: threads } })
const sequence = context.getSequence()

/** Greedy tokens, behind others for so long. */
async function decode(tokens) {
  await sequence.clearHistory()
  const begun = performance.now()
  let [made, start] = [0, 0]
  for await (const _ of sequence.evaluate([1234], { temperature: 0, yieldEogToken: true })) {
    if (start > 0) made++
    else if (performance.now() - begun >= WARM_MS) start = performance.now()
    if (made === tokens) break
  }
  return (tokens * 1e3) / (performance.now() - start)
}

async function prefill(tokens) {
  await decode(1)
  await sequence.clearHistory()
  const start = performance.now()
  await sequence.evaluateWithoutGeneratingNewTokens(Array.from({ length: tokens }, (_, i) => 300 + ((i * 37) % 30000)))
  return (tokens * 1e3) / (performance.now() - start)
}

console.log(JSON.stringify({ threads: context.currentThreads }))
for await (const line of createInterface({ input: process.stdin })) {
  const [what, tokens] = line.split(' ')
  const rate = await (what === 'decode' ? decode : prefill)(Number(tokens))
  console.log(JSON.stringify({ rate }))
}
process.exit(0)

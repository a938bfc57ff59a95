// One contender of bench/decode.mjs: a model on ranks of the CPU. For each line "decode N" or "prefill N" of its input it answers tokens a second.
// node decode-rank.mjs MODEL RANKS [LOAD OPTIONS AS JSON]
import { createInterface } from 'node:readline'
import { fileFolder, LanguageModel, launch } from 'rankmesh'

const WARM_MS = 700
const [model, ranks, options = '{}'] = process.argv.slice(2)
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const folder = fileFolder(model)

await launch({ ranks: Number(ranks), placement: 'local', device: 'cpu', timeoutMs: 24 * 3600_000 }, async (context) => {
  const { rank, host } = context
  const language = await LanguageModel.load(folder, context, { capacity: 512, ...JSON.parse(options) })
  const { llama } = language
  const ids = Array.from({ length: 128 }, (_, i) => 300 + 7 * i)
  if (rank === 0) console.log(JSON.stringify({ bytes: llama.bytes }))
  for (;;) {
    const line = await host.broadcast(rank === 0 ? ((await lines.next()).value ?? 'end') : null, { root: 0 })
    const [what, count] = line.split(' ')
    if (what === 'end') return language.dispose()
    // The system places the processors by what has run on them for a while.
    const until = performance.now() + WARM_MS
    do {
      llama.truncate(0)
      await lastOf(await llama.forward(ids.slice(0, 8)))
      for (let i = 0; i < 16; i++) await lastOf(await llama.forward([i]))
    } while (await host.broadcast(performance.now() < until, { root: 0 }))
    llama.truncate(0)
    let id = 1
    if (what === 'decode') {
      await lastOf(await llama.forward(ids.slice(0, 8)))
    }
    await host.barrier()
    const cpu = process.cpuUsage()
    const start = performance.now()
    if (what === 'decode') {
      for (let i = 0; i < Number(count); i++) {
        const last = await lastOf(await llama.forward([id]))
        id = last.indexOf(Math.max(...last.subarray(0, 1000)))
      }
    } else {
      await lastOf(await llama.forward(ids.slice(0, Number(count))))
    }
    const seconds = (performance.now() - start) / 1000
    const { user, system } = process.cpuUsage(cpu)
    if (rank === 0) console.log(JSON.stringify({ rate: Number(count) / seconds, cpu: (user + system) / 1e6 / seconds }))
  }
})

async function lastOf(logits) {
  const last = await logits.last()
  logits.dispose()
  return last
}

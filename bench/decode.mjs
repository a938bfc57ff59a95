// Tokens a second of models on ranks of the CPU beside llama.cpp's, in turn, each slice tagged with where the system has put the processors.
import { execFileSync, spawn } from 'node:child_process'
import { statSync } from 'node:fs'
import { basename, join } from 'node:path'
import { createInterface } from 'node:readline'
import { built } from './built.mjs'
import { median, row } from './harness.mjs'

export const about =
  'decode and prefill on 1 and 2 ranks of the CPU, activations exact and rounded, beside llama.cpp (MODELS=a.gguf,b.gguf from bench/synthetic.mjs; ONLY=some contenders; LLAMA_BENCH=its llama-bench; NODE_LLAMA_CPP=dist/index.js of node-llama-cpp; ONEDNN, ONNXRUNTIME=commands of bench/peers/products.py and onnx-products.mjs)'

const ROUNDS = Number(process.env.ROUNDS ?? 5)
const TOKENS = Number(process.env.TOKENS ?? 24)
const PROMPT = 128
/** What is measured: decode, prefill or both. */
const WHAT = (process.env.WHAT ?? 'decode,prefill').split(',')
/** Contenders by name, where not all are wanted: a regular expression. */
const ONLY = new RegExp(process.env.ONLY ?? '')
/** Two threads read more than so many times what one reads: the processors are far from each other, and each has a way to memory of its own. */
const FAR = 1.5
const here = import.meta.dirname

/** A process that says a line when it is ready, and answers lines. */
class Contender {
  constructor(program, ...args) {
    this.process = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] })
    this.lines = createInterface({ input: this.process.stdout })[Symbol.asyncIterator]()
    this.ready = this.#line()
  }

  async #line() {
    const { value, done } = await this.lines.next()
    if (done) throw new Error('A contender has ended')
    return JSON.parse(value)
  }

  async rate(what, count) {
    this.process.stdin.write(`${what} ${count}\n`)
    return this.#line()
  }

  end() {
    this.process.stdin.end()
  }
}

/** Tokens a second as llama-bench prints them. */
function llamaBench(model, threads, what, count) {
  const size = what === 'decode' ? ['-p', '0', '-n', String(count)] : ['-p', String(count), '-n', '0']
  const args = ['-m', model, '-dev', 'none', '-ngl', '0', '-t', String(threads), '-r', '1', '-fa', 'on', '-o', 'jsonl', ...size]
  const out = execFileSync(process.env.LLAMA_BENCH, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
  return { rate: JSON.parse(out.split('\n').find((line) => line.startsWith('{'))).avg_ts }
}

function builtPlacement() {
  const program = built('cc', 'placement.c', ['-pthread'])
  return program && (() => JSON.parse(execFileSync(program, { encoding: 'utf8' })))
}

export async function run() {
  const models = (process.env.MODELS ?? '').split(',').filter(Boolean)
  if (models.length === 0) {
    console.log('Name models: MODELS=a.gguf,b.gguf npm run bench -- decode. `node bench/synthetic.mjs FOLDER` writes some.')
    return
  }
  if (!process.env.LLAMA_BENCH) console.log('llama.cpp is not measured: name its llama-bench in LLAMA_BENCH')
  const placement = builtPlacement()
  if (!placement) return
  for (const model of models) await compare(model, placement)
}

async function compare(model, placement) {
  const options = JSON.parse(process.env.LOAD_OPTIONS ?? '{}')
  const rounded = { ...options, activations: 'int8' }
  const ours = { '1 rank': [1, options], '2 ranks': [2, options], '1 rank, rounded': [1, rounded], '2 ranks, rounded': [2, rounded] }
  const processes = []
  const contenders = {}
  for (const [name, [ranks, load]] of Object.entries(ours)) {
    if (!ONLY.test(name)) continue
    const contender = new Contender(process.execPath, join(here, 'decode-rank.mjs'), model, ranks, JSON.stringify(load))
    await contender.ready
    processes.push(contender)
    contenders[name] = (what, count) => contender.rate(what, count)
  }
  if (process.env.LLAMA_BENCH) {
    for (const [name, threads] of [
      ['llama.cpp, 1 thread', 1],
      ['llama.cpp, 2 threads', 2],
    ])
      if (ONLY.test(name)) contenders[name] = (what, count) => llamaBench(model, threads, what, count)
  }
  const npm =
    process.env.NODE_LLAMA_CPP && `${process.execPath} ${join(here, 'peers/node-llama-cpp.mjs')} ${process.env.NODE_LLAMA_CPP} ${model}`
  for (const [name, command, only] of [
    ['node-llama-cpp, 1 thread', npm && `${npm} 1`],
    ['node-llama-cpp, 2 threads', npm && `${npm} 2`],
    ['oneDNN, products alone', process.env.ONEDNN, 'prefill'],
    ['onnxruntime, the same', process.env.ONNXRUNTIME, 'decode'],
  ]) {
    if (!command || !ONLY.test(name) || (only && !WHAT.includes(only))) continue
    const contender = new Contender(...command.split(' '))
    await contender.ready
    processes.push(contender)
    contenders[name] = (what, count) => (!only || what === only ? contender.rate(what, count) : null)
  }
  const slices = []
  for (let round = 0; round <= ROUNDS; round++) {
    for (const [name, rate] of Object.entries(contenders)) {
      for (const [what, count] of [
        ['decode', TOKENS],
        ['prefill', PROMPT],
      ].filter(([what]) => WHAT.includes(what))) {
        const before = placement()
        const result = await rate(what, count)
        if (!result) continue
        const after = placement()
        const [first, second] = [before, after].map(({ oneThread, twoThreads }) => (twoThreads > FAR * oneThread ? 'far' : 'near'))
        // What was measured while the system moved a processor belongs to neither; `all` has everything.
        if (round > 0)
          slices.push({
            name,
            what,
            regime: first === second ? first : 'between',
            limit: Math.max(before.twoThreads, after.twoThreads),
            ...result,
          })
      }
    }
  }
  for (const contender of processes) contender.end()
  report(model, Object.keys(contenders), slices)
}

function report(model, names, slices) {
  const bytes = statSync(model).size
  console.log(`\n${basename(model)}, ${(bytes / 2 ** 20).toFixed(0)} MiB`)
  const widths = [24, 9, 7, 12, 14, 8]
  for (const regime of ['near', 'far', 'all']) {
    const here = slices.filter((slice) => regime === 'all' || slice.regime === regime)
    if (here.length === 0) continue
    const limit = median(here.map((slice) => slice.limit))
    console.log(`\nprocessors ${regime === 'all' ? 'anywhere' : regime}: two threads read ${limit.toFixed(1)} GB/s`)
    row(['', 'decode/s', 'slices', 'GB/s (share)', `prefill/s (${PROMPT})`, 'cores'], widths)
    for (const name of names) {
      const of = (what) => here.filter((slice) => slice.name === name && slice.what === what)
      const [decode, prefill] = ['decode', 'prefill'].map((what) => of(what).map(({ rate }) => rate))
      if (decode.length + prefill.length === 0) continue
      const rate = decode.length > 0 ? median(decode) : 0
      const read = (rate * bytes) / 1e9
      const cores = of('decode').flatMap(({ cpu }) => cpu ?? [])
      const share = `${read.toFixed(1)} (${((100 * read) / limit).toFixed(0)} %)`
      row(
        [name, rate.toFixed(1), decode.length, share, median(prefill).toFixed(0), cores.length > 0 ? median(cores).toFixed(2) : ''],
        widths,
      )
    }
  }
}

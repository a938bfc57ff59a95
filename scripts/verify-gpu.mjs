// Tries everything that runs on NVIDIA GPUs on those of this machine: `node scripts/verify-gpu.mjs`, with dist/, the addon and its kernels at hand.
//   --only 1,2       these parts                        --list         what they are
//   --seed N         the seed of the random data        --quick        small sizes, for emulated devices and for sanitizers
//   --json FILE      results and figures
// Ends with 0, with 1 where a check failed, with 2 where there is no GPU to try.
import { spawn, spawnSync } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { writeFileSync, writeSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { Report } from './verify-gpu/checks.mjs'
import { inspect } from './verify-gpu/found.mjs'

const PARTS = [
  { part: 1, about: 'operations of the device against the CPU and float64', run: ['operations', 'products'], minutes: 10 },
  { part: 2, about: 'collectives and fused collectives', run: ['collectives'], minutes: 20 },
  { part: 3, about: 'NCCL', run: ['nccl'], minutes: 10 },
  { part: 4, about: 'a rank that does not come', run: ['late'], minutes: 5 },
  { part: 5, about: 'recorded steps', run: ['recorded'], minutes: 5 },
  { part: 6, about: 'the bundled model', run: ['model'], minutes: 5 },
  { part: 7, about: 'figures', run: ['figures', 'beside'], minutes: 20 },
]
/** Parts 1 and 2 again, with small sizes. */
const SANITIZED_PART = { part: 8, about: 'compute-sanitizer, where it is on the PATH' }
/** Exit code where there is no GPU. */
const ABSENT = 2
/** Before what a child tells its parent. */
const MARK = '\u001e'
/** Of the sanitizer, where it has found something and the program itself has not failed. */
const SANITIZED = 86
/** How much longer all takes under it. */
const SANITIZER_FACTOR = 6

const { values: options } = parseArgs({
  options: {
    only: { type: 'string' },
    seed: { type: 'string' },
    json: { type: 'string' },
    quick: { type: 'boolean', default: false },
    list: { type: 'boolean', default: false },
    // How this program calls itself: one module of a part, in a process of its own.
    run: { type: 'string' },
    sanitized: { type: 'boolean', default: false },
  },
})

if (options.list) {
  for (const { part, about } of [...PARTS, SANITIZED_PART]) console.log(`${part}  ${about}`)
} else if (options.run) {
  await runOne()
} else {
  process.exitCode = await runAll()
}

/** What a process of one part does: it writes what it finds as lines that begin with MARK. */
async function runOne() {
  const report = new Report((entry) => writeSync(1, `${MARK}${JSON.stringify(entry)}\n`))
  const { run } = await import(`./verify-gpu/${options.run}.mjs`)
  const found = inspect()
  await run(report, { seed: Number(options.seed), quick: options.quick, sanitized: options.sanitized, ...found })
}

async function runAll() {
  const only = options.only?.split(',').map(Number)
  const unknown = only?.find((part) => ![...PARTS, SANITIZED_PART].some((one) => one.part === part))
  const seed = options.seed === undefined ? randomInt(2 ** 32) : Number(options.seed)
  if (unknown !== undefined || !Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) {
    console.error(`--only takes parts (${[...PARTS, SANITIZED_PART].map(({ part }) => part)}), --seed an integer in [0, 2^32)`)
    return 1
  }
  const { lines, obstacle, devices, features } = inspect()
  for (const line of lines) console.log(line)
  if (obstacle !== null) {
    console.log(`\nNothing was tried: ${obstacle}`)
    return ABSENT
  }
  console.log(`seed ${seed} (--seed ${seed} repeats it)`)
  const entries = []
  for (const { part, about, run, minutes } of PARTS) {
    if (only && !only.includes(part)) continue
    console.log(`\n${part}. ${about}`)
    for (const module of run) await child({ part, module, minutes, seed }, entries)
  }
  if (!only || only.includes(SANITIZED_PART.part)) await sanitize(entries, seed)
  const count = (status) => entries.filter((entry) => entry.status === status).length
  const [passed, failed, skipped] = ['PASS', 'FAIL', 'SKIP'].map(count)
  if (options.json) writeFileSync(options.json, `${JSON.stringify({ seed, devices, features, entries }, null, 2)}\n`)
  for (const { status, part, name, detail } of entries) if (status === 'FAIL') console.log(`\nFAIL  part ${part}: ${name}: ${detail}`)
  console.log(`\n${passed} passed, ${failed} failed, ${skipped} skipped`)
  return failed > 0 ? 1 : 0
}

/** Runs one module in a process group of its own, which ends with it. `tool`: the sanitizer's command. */
async function child({ part, module, minutes, seed, tool = [] }, entries) {
  const add = (entry) => {
    const full = { part, module, ...entry }
    entries.push(full)
    if (entry.status) console.log(`  ${entry.status}  ${entry.name}${entry.detail ? `: ${entry.detail}` : ''}`)
    else if (entry.line) console.log(`  ${entry.line}`)
  }
  const args = [import.meta.filename, '--run', module, '--seed', `${seed}`]
  if (options.quick || tool.length > 0) args.push('--quick')
  if (tool.length > 0) args.push('--sanitized')
  const [command, ...before] = [...tool, process.execPath]
  const one = spawn(command, [...before, ...args], { detached: true, stdio: ['ignore', 'pipe', 'inherit'] })
  createInterface({ input: one.stdout }).on('line', (line) => {
    if (line.startsWith(MARK)) add(JSON.parse(line.slice(MARK.length)))
    else console.log(`  | ${line}`)
  })
  const kill = () => {
    try {
      process.kill(-one.pid, 'SIGKILL')
    } catch {}
  }
  const onSignal = () => {
    kill()
    process.exit(130)
  }
  process.once('SIGINT', onSignal).once('SIGTERM', onSignal)
  let late = false
  const timer = setTimeout(() => {
    late = true
    kill()
  }, minutes * 60_000)
  const ended = await new Promise((resolve) => {
    one.once('error', (error) => resolve(error.message))
    one.once('close', (code, signal) => resolve(code === 0 ? null : (signal ?? code)))
  })
  clearTimeout(timer)
  kill() // ranks that it has left
  process.off('SIGINT', onSignal).off('SIGTERM', onSignal)
  if (late) add({ status: 'FAIL', name: module, detail: `was not done after ${minutes} minutes` })
  else if (ended === SANITIZED) add({ status: 'FAIL', name: `${module} under ${tool.join(' ')}`, detail: 'the sanitizer has found errors' })
  else if (ended !== null) add({ status: 'FAIL', name: module, detail: `its process ended with ${ended}` })
  else if (tool.length > 0) add({ status: 'PASS', name: `${module} under ${tool.slice(0, 3).join(' ')}` })
}

async function sanitize(entries, seed) {
  console.log('\n8. compute-sanitizer')
  if (spawnSync('compute-sanitizer', ['--version']).status !== 0) {
    entries.push({ part: 8, status: 'SKIP', name: 'compute-sanitizer', detail: 'it is not on the PATH' })
    return console.log('  SKIP  compute-sanitizer: it is not on the PATH')
  }
  const tool = (name) => ['compute-sanitizer', '--tool', name, '--target-processes', 'all', '--error-exitcode', `${SANITIZED}`]
  for (const [name, parts] of [
    ['memcheck', [1, 2]],
    ['racecheck', [1]],
  ]) {
    for (const { part, run, minutes } of PARTS) {
      if (!parts.includes(part)) continue
      for (const module of run) await child({ part: 8, module, minutes: minutes * SANITIZER_FACTOR, seed, tool: tool(name) }, entries)
    }
  }
}

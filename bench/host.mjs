// Host all-reduce among threads and processes of one machine, beside what else there is: Open MPI, MPICH, torch's gloo.
import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { built } from './built.mjs'
import { median, row, verdict } from './harness.mjs'

export const about = 'host all-reduce of float32 arrays among threads and processes, beside Open MPI, MPICH and torch gloo, in turn'

const ROUNDS = Number(process.env.ROUNDS ?? 3)
const SIZES = [8, 8192, 65_536, 1 << 20, 16 << 20, 64 << 20]
const here = import.meta.dirname

const output = (command, args, env = {}) =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], env: { ...process.env, ...env }, timeout: 300_000 })

/** By name: what gives microseconds by size. */
function contenders(ranks, sizes) {
  const ours = (placement, kind, env) => () =>
    output(process.execPath, [join(here, 'host-rank.mjs'), placement, ranks, kind, ...sizes], env)
  const all = {
    'threads, in place': ours('thread', 'shared'),
    'threads, private': ours('thread', 'private'),
    'processes, in place': ours('process', 'shared'),
    'processes, private': ours('process', 'private'),
    'threads, JavaScript, in place': ours('thread', 'shared', { RANKMESH_ADDON: 'off' }),
    'threads, JavaScript, private': ours('thread', 'private', { RANKMESH_ADDON: 'off' }),
  }
  const openmpi = built('mpicc.openmpi', 'all_reduce.c')
  const mpich = built('mpicc.mpich', 'all_reduce.c')
  if (openmpi) all['Open MPI'] = () => output('mpirun.openmpi', ['--allow-run-as-root', '--oversubscribe', '-np', ranks, openmpi, ...sizes])
  if (mpich) all.MPICH = () => output('mpiexec.mpich', ['-np', ranks, mpich, ...sizes])
  const gloo = [join(here, '../dist/cli.js'), 'run', '-n', '1', '--nnodes', ranks]
  if (ranks === 2) {
    all['gloo (ours)'] = () => {
      const port = 20_000 + Math.floor(Math.random() * 10_000)
      const command = (node) =>
        `${process.execPath} ${[...gloo, '--node-rank', node, '--master', `127.0.0.1:${port}`, join(here, 'host-rank.mjs'), 'process', ranks, 'private', ...sizes].join(' ')}`
      return output('sh', ['-c', `${command(1)} & ${command(0)}; wait`], { RANKMESH_TOKEN: 'for measuring only' }).replace(/^\[0\] /m, '')
    }
  }
  try {
    output('python3', ['-c', 'import torch'])
    all['torch gloo'] = () => output('python3', [join(here, 'peers/all_reduce.py'), ranks, ...sizes])
  } catch {
    console.log('not measured: torch gloo (python3 cannot import torch)')
  }
  return all
}

async function measure(ranks, sizes) {
  const all = contenders(ranks, sizes)
  const times = Object.fromEntries(Object.keys(all).map((name) => [name, []]))
  for (let round = 0; round < ROUNDS; round++) for (const [name, once] of Object.entries(all)) times[name].push(JSON.parse(once()))
  const widths = [32, ...sizes.map(() => 10)]
  row(
    [
      `${ranks} ranks, µs a call`,
      ...sizes.map((bytes) => (bytes < 1024 ? `${bytes} B` : bytes < 1 << 20 ? `${bytes >> 10} KiB` : `${bytes >> 20} MiB`)),
    ],
    widths,
  )
  const medians = {}
  for (const [name, rounds] of Object.entries(times)) {
    medians[name] = Object.fromEntries(sizes.map((bytes) => [bytes, median(rounds.map((round) => round[bytes]))]))
    row([name, ...sizes.map((bytes) => medians[name][bytes].toFixed(medians[name][bytes] < 100 ? 2 : 0))], widths)
  }
  console.log()
  return medians
}

export async function run() {
  const limits = built('cc', 'limits.c', ['-pthread'])
  const tell = () => {
    if (!limits) return
    const { oneThread, twoThreads, hop } = JSON.parse(output(limits, []))
    console.log(
      `Limits: copying moves ${oneThread} GB/s with one thread, ${twoThreads} with two (read and written); a flag takes ${hop} ns from core to core\n`,
    )
  }
  tell()
  const two = await measure(2, SIZES)
  tell()
  judge(two)
  const four = await measure(4, SIZES.slice(0, 5))
  const best = bestOf(four, ['Open MPI', 'MPICH'], 8192)
  if (best) judgement('4 ranks, 8 KiB: processes ahead of the better MPI', best / four['processes, private'][8192], 1)
}

function judge(times) {
  for (const [bytes, wanted] of [
    [8192, 2],
    [1 << 20, 3],
    [16 << 20, 3],
  ]) {
    const best = bestOf(times, ['Open MPI', 'MPICH'], bytes)
    if (!best) continue
    for (const where of ['threads', 'processes']) {
      for (const kind of ['in place', 'private'])
        judgement(
          `${where}, ${kind}, ${bytes} bytes, against the better MPI`,
          best / times[`${where}, ${kind}`][bytes],
          kind === 'in place' ? wanted : null,
        )
    }
  }
  if (times['torch gloo']) {
    judgement('threads, 8 KiB, against torch gloo', times['torch gloo'][8192] / times['threads, private'][8192], 50)
    for (const bytes of SIZES)
      judgement(`gloo (ours), ${bytes} bytes, against torch gloo`, times['torch gloo'][bytes] / times['gloo (ours)'][bytes], 1 / 1.2)
  }
  if (times['Open MPI'])
    judgement(
      'threads in JavaScript, 16 MiB, against Open MPI',
      times['Open MPI'][16 << 20] / times['threads, JavaScript, in place'][16 << 20],
      1,
    )
  console.log()
}

const bestOf = (times, names, bytes) =>
  Math.min(...names.filter((name) => times[name]).map((name) => times[name][bytes]), Number.POSITIVE_INFINITY) || null

function judgement(what, ratio, wanted) {
  console.log(`${what}: ${ratio.toFixed(2)}x${wanted === null ? '' : ` (wanted ${wanted.toFixed(2)}x: ${verdict(ratio >= wanted)})`}`)
}
